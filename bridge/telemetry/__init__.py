"""Log, metrics, trace."""
