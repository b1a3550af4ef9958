"""Turns at what there is too little of for all who want it, shared between tenants by weight."""
