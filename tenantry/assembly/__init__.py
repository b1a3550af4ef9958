"""Builds a daemon's parts from the settings: the adapters, and the API in front of them."""
