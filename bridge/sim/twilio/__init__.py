"""The parts of the fake caller (bridge/sim/caller.py): Twilio's side of a call."""
