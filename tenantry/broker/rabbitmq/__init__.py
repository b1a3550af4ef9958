"""RabbitMQ, through pika and its management API."""
