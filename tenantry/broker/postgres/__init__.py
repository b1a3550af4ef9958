"""The embedded broker: queues in PostgreSQL, for installations without RabbitMQ."""
