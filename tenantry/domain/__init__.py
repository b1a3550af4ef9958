"""What Tenantry is about, in pure functions and frozen values; the standard library only."""
