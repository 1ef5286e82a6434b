"""Random programs, made of every operator that is read: no sampled slope is above a bound, every refusal is typed.

``python -m tests.fuzz 0 20000`` runs the programs of these seeds and prints what is wrong, with their source.
"""
