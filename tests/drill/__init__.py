"""The operator's drill: cause faults, and record what an operator sees of them.

`python -m tests.drill` conducts it on services of its own, with a real Prometheus beside them
(`make deploy-tools`); `--write` puts the record into docs/drill.md.
"""
