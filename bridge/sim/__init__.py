"""Fakes of the outside world: `caller.py` is a Twilio, `model.py` a Realtime server.

Nothing here imports the rest of `bridge`: a fake that shares code proves nothing.
"""
