"""Runs work on untrusted input in disposable processes with limits on time and memory."""
