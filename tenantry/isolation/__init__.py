"""The daemon's own proof that no tenant reaches another, by probes in the tenants' places."""
