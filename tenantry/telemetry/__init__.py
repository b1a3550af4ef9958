"""Logging and metrics: observers, not code in the middle of the work."""
