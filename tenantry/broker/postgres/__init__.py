"""The embedded broker: queues in PostgreSQL, for where there is no RabbitMQ."""
