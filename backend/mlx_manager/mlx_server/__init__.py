"""The inference server. Start reading at `main.py`."""

__version__ = "0.1.0"
