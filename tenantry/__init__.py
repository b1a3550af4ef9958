"""What the actors are made of: domain, journal, message store, broker, API, command line."""

__version__ = "0.1.0"
