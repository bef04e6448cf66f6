"""Reports of calls, and how long what is kept stays."""
