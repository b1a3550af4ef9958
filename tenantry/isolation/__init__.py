"""The daemon's proof that no tenant reaches another, by probes that take tenants' places."""
