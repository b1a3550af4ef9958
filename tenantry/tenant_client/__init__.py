"""A tenant's own way in: AMQP or SQL with its credentials, as its programs have it."""
