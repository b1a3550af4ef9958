"""One module an experiment: `run(rig, rounds)` brings the fault about and waits for the end of it.

What goes wrong is an AssertionError, or a line in `rig.figures.wrong`. The ledger is checked by
whoever runs the experiment.
"""
