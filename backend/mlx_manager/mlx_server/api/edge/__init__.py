"""The HTTP edge: what a request must be before the routes see it, as ASGI middlewares, in the order of `main.py`."""
