"""The HTTP API, served on the control socket and on TCP."""
