"""One module for each command of `cli.py`, and what they share. Slow imports happen only when a command needs them."""
