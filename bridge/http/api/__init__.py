"""The control API: lists, steers and places calls over HTTP."""
