"""The page of the server: static files that a browser runs as they are. Knows no HTTP."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

INDEX = "index.html"
_FOLDER = Path(__file__).parent
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript"}


@dataclass(frozen=True, slots=True)
class PageFile:
    content: bytes
    media_type: str
    etag: str
    """The entity tag of the content, in quotes."""


def page_files() -> dict[str, PageFile]:
    """The files by their path below this folder, such as `vendor/marked.esm.js`."""
    found = (path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _MEDIA_TYPES)
    return {path.relative_to(_FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, _MEDIA_TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
