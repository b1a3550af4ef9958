"""What only tests and benchmarks run: adapters in memory, and a private RabbitMQ node."""
