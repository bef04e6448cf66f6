"""The parts of the fake model (bridge/sim/model.py): a Realtime server's side."""
