"""The operator's page: HTML made on the server, from API calls made in the viewer's name."""
