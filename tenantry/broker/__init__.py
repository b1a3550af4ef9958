"""The broker: exchanges and queues, users, deliveries, confirms."""
