"""The control API: running calls seen, steered and placed over HTTP."""
