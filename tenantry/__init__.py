"""The parts around the actors: domain, journal, message store, broker, API, command line."""

__version__ = "0.1.0"
