"""The message store: every tenant's messages in its own partition, exactly once."""
