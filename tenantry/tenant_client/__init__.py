"""A tenant's own way in: AMQP, SQL or Iggy with its credentials, as its programs have it."""
