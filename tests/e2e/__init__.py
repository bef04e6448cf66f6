"""Whole calls over real sockets, with the fakes at both ends."""
