"""Every parser and state machine that strangers can reach, fed with what they may send.

`python -m tests.fuzz` searches (coverage-guided, needs atheris: `make fuzz`); what it
has found is kept in corpus/ and fed again by test_corpus.py, which needs none.
"""
