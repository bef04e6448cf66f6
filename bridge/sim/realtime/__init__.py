"""What the fake model (bridge/sim/model.py) is made of: a Realtime server's side."""
