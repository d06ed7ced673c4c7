"""How the routes read their JSON: a key that an object has twice is refused, where Python's parser drops the first."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

SHOWN_CHARACTERS = 100


class BodyRefused(HTTPException):
    """FastAPI lets this pass from where it reads a body; `detail` is the message."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(400, message)
        self.param = param


class JsonRoute(APIRoute):
    """`APIRouter(route_class=JsonRoute)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await original(_JsonRequest(request.scope, request.receive))

        return handler


class _JsonRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = json.loads(await self.body(), object_pairs_hook=_unique)
        return self._json


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = keys.most_common(1)[0][0]
        shown = ascii(twice[:SHOWN_CHARACTERS])[1:-1]  # a lone surrogate could not be sent
        raise BodyRefused(f"The body has an object with two {shown!r} in it: which one is meant?", shown)
    return made
