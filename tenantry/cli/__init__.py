"""The command line: thin clients of the API over the control socket."""
