"""Fuzz tests of every parser and state machine that receives input from outside.

`python -m tests.fuzz` searches for faults, guided by coverage (`make fuzz`: atheris).
Its findings are kept in corpus/; test_corpus.py runs them again, without atheris.
"""
