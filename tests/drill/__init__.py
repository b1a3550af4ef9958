"""The operator's drill: things go wrong, and what is seen of it is written down.

`python -m tests.drill` conducts it on services of its own, with a real Prometheus beside them
(`make deploy-tools`); `--write` puts what was seen into docs/drill.md.
"""
