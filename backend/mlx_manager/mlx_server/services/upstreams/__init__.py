"""Forwards requests to other servers, and yields the same events as a local model."""
