"""One module per experiment: `run(rig, rounds)` causes the fault and waits until it is over.

A failure is an AssertionError, or a line in `rig.figures.wrong`. The ledger is checked by
`tests.faults.catalogue`, which runs the experiment.
"""
