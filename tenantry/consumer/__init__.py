"""The multi-tenant consumer: tenants that read their own topics as themselves, and count."""
