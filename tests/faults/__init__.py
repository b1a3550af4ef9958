"""Experiments: a fault, again and again, under load; and the ledger afterwards.

`python -m tests.faults --help` runs them. docs/reliability.md has what they have measured.
"""
