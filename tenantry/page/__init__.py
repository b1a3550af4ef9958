"""The operator's page: HTML that this server makes, over the API, in its viewer's name."""
