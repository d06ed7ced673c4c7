"""Renders chat templates, which are untrusted programs from a model's files, in separate processes with limits."""
