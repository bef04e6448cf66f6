"""What the fake caller (bridge/sim/caller.py) is made of: Twilio's side of a call."""
