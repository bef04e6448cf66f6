"""What can be seen of a call: log, metrics, trace. All are fed by the core's Notes."""
