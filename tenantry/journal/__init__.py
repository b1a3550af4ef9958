"""The journal: an append-only store of events, the truth about tenants."""
