"""Whole calls over real sockets, with a fake Twilio and a fake model."""
