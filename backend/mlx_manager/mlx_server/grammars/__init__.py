"""Grammars: translates the constraints of a request for llguidance and checks them in a separate process."""
