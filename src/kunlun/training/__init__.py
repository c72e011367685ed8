"""Training and evaluation of any model of the house.

Read trainer.py first (the loop), then what it is made of: config, source (where samples come
from), optim, guards, average, scoring, checkpoint, progress, rundir, runlog, environment,
memory, interrupt. After a run: evaluate (with slices, predictions) and compare. Before one: plan.
"""
