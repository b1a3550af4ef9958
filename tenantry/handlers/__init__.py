"""Handlers: functions of the user's that run in the transaction that stores a message."""
