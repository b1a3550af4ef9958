"""Apache Iggy as the broker."""
