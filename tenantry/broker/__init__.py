"""The broker: streams and queues, users, deliveries, confirms."""
