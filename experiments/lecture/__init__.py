"""The lecture, measured: each claim an experiment on a toy, beside its exact value. `run.py` has the list."""
