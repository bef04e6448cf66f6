"""Log, metrics and trace of calls."""
