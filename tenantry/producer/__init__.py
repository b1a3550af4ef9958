"""The multi-tenant producer: tenants that publish as themselves, and count."""
