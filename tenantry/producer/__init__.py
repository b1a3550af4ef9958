"""The multi-tenant producer and the proof of isolation."""
