"""The running system: a supervisor, its tenants, their consumers and workers."""
