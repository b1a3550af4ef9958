"""What only tests and benchmarks run: a private RabbitMQ node."""
