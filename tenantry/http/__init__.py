"""The HTTP server under the API: listeners, connections, limits, who asks, problem documents."""
