"""Experiments: cause a fault again and again under load, then check the ledger.

`python -m tests.faults --help` lists them. docs/reliability.md has their results.
"""
