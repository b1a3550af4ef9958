"""Turns at scarce resources: shared between competing tenants by weight, or given out at a rate."""
