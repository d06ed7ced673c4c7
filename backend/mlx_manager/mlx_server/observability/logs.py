"""How log lines look."""

import logging


def configure_logging(level: str) -> None:
    """For the command line; a program that embeds the app configures its own logging."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for noisy in ("httpx", "sse_starlette", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
