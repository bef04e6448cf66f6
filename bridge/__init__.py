"""A Twilio Media Streams bridge to realtime voice agents. Start reading: `call.py`."""
