"""The SQL of the project: migrations, and queries by name."""
