"""The audit: counts compared with rows, dead letters and queues."""
