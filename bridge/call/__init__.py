"""One phone call. Start reading: `call.py`."""
