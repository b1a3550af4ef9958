"""The daemon as a process: its signals, its threads, its limits."""
