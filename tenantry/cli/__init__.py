"""The command line: thin clients of the API over the control socket, and the daemon's start."""
