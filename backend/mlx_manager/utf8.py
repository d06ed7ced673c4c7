"""File names and arguments that are not UTF-8: Python keeps their bytes as lone surrogates."""

from pathlib import Path


def is_utf8(name: str | Path) -> bool:
    try:
        str(name).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """The text, with escapes for bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
