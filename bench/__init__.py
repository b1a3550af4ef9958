"""Benchmarks: the daemon and its peers, side by side in one run, on real services."""
