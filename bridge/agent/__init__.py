"""What user code gets: the live call, events, approvals, phone tools; agent loading."""
