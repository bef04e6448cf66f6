"""Reports of calls, and the deletion of old traces."""
