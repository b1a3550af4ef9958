"""The domain, in pure functions and frozen values; uses only the standard library."""
