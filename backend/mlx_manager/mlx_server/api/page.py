"""GET / and /ui: the page for people. Its files need no key; the requests that the page sends do.

`/` is the page for browsers only: clients that do not accept HTML get the 404 of an unknown path.
"""

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse
from starlette.types import Scope

from mlx_manager.mlx_server.api.scopes import headers, path_of
from mlx_manager.web import INDEX, PageFile, page_files

router = APIRouter(include_in_schema=False)

_FILES = page_files()
_PATHS = frozenset({"/ui", *(f"/ui/{name}" for name in _FILES)})
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "data:",  # the icon
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",  # browsers ask again with the ETag, so that an upgrade shows at once
    "vary": "accept",
}


def is_page(scope: Scope) -> bool:
    """Whether the request is for a file of the page."""
    path = path_of(scope)
    return path in _PATHS or (path == "/" and _is_browser(scope))


@router.api_route("/", methods=["GET", "POST"])
async def root(request: Request) -> Response:
    if not _is_browser(request.scope):
        raise HTTPException(404)
    return _answer(request, INDEX)


@router.get("/ui")
async def index(request: Request) -> Response:
    if request.scope.get("raw_path", b"").endswith(b"/"):
        return RedirectResponse("../ui", 307)  # the page's addresses are relative, for proxies that add a prefix
    return _answer(request, INDEX)


@router.get("/ui/{name:path}")
async def file(name: str, request: Request) -> Response:
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = _FILES.get(name)
    if found is None or not request.app.state.settings.ui:
        raise HTTPException(404)
    caching = {**_HEADERS, "etag": found.etag}
    if _has_it(request, found):
        return Response(status_code=304, headers=caching)
    return Response(found.content, headers=caching, media_type=found.media_type)


def _has_it(request: Request, found: PageFile) -> bool:
    offered = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    return found.etag in offered


def _is_browser(scope: Scope) -> bool:
    return scope["method"] == "GET" and any("text/html" in accepted for accepted in headers(scope, b"accept"))
