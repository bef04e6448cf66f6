"""The commands of `bridge`."""
