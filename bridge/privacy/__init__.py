"""Pure: redaction of what is kept, scrubbing of log lines."""
