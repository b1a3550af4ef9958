"""What a daemon stands on, put together from the settings: adapters, and the API before them."""
