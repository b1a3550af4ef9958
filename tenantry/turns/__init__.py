"""Turns at scarce resources, shared between competing tenants by weight."""
