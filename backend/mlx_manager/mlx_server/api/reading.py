"""Decodes and validates JSON bodies for the routes, large ones in a thread. Knows no fields of a protocol.

Bounds are checked before decoding, because the decoder's time and memory depend on the number of values, not of bytes.
"""

import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from mlx_manager.mlx_server.api.dependencies import server_state
from mlx_manager.mlx_server.api.scopes import is_json
from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.errors import BrokenBody
from mlx_manager.mlx_server.protocols.sizes import check_sizes

T = TypeVar("T")
SMALL_BYTES = 100_000
"""Decoding and validating this much JSON takes a few milliseconds."""
MAX_COMMAS = 1_200_000
"""Above a prompt of a million token ids, so that the limit of the prompt applies first: its error names the field."""
MAX_OPENED = 600_000
"""Lists and objects, 230 bytes each. Brackets in texts count too; no prompt has as many."""
MAX_DEPTH = 256
"""The server and the model's template recurse through the schema of a tool."""
SHOWN_CHARACTERS = 100
NO_JSON = "The body is not a JSON object. Send one in UTF-8 with the header Content-Type: application/json."


class JsonRoute(APIRoute):
    """The `route_class` of endpoints with the arguments `body`, `request` and `state`.

    FastAPI only describes them: its own decoding, validation and injection would double the time of a request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if self.body_field is None:
            return super().get_route_handler()
        model, endpoint = self.body_field.field_info.annotation, self.endpoint
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        names = inspect.signature(endpoint).parameters.keys()
        assert names <= {"body", "request", "state"}, names

        async def handler(request: Request) -> Response:
            body = await _read(request, model)
            given = {"body": body, "request": request, "state": await server_state(request)}
            answer = await endpoint(**{name: given[name] for name in names})
            if isinstance(answer, Response):
                return answer
            return Response(to_json(answer), media_type="application/json")

        return handler


async def converted(request: Request, convert: Callable[..., T], *arguments: object) -> T:
    """Calls `convert` with the arguments, in a thread if the request's body is large."""
    return await _off_loop(len(await request.body()), convert, *arguments)


async def _off_loop(size_bytes: int, work: Callable[..., T], *arguments: object) -> T:
    """Calls `work` on a JSON text of that size, in a thread if it is large."""
    if size_bytes <= SMALL_BYTES:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


async def _read(request: Request, model: type[BaseModel]) -> BaseModel:
    body = await request.body()
    if not body or not is_json(request.scope):
        raise BrokenBody(NO_JSON)
    return await _off_loop(len(body), _validated, body, model, request.app.state.bounds)


def _validated(body: bytes, model: type[BaseModel], bounds: Bounds) -> BaseModel:
    """Raises RequestValidationError, BrokenBody, and InvalidRequest for a body above the bounds. Pure."""
    values = _decoded(body)
    check_sizes(values, bounds)
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        faults = exc.errors(include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from exc


def _decoded(body: bytes) -> object:
    """Raises BrokenBody."""
    opened = body.count(b"[") + body.count(b"{")
    if opened > MAX_OPENED or body.count(b",") > MAX_COMMAS:
        most = f"{MAX_OPENED:,} lists and objects, or {MAX_COMMAS:,} values"
        raise BrokenBody(f"The body has more than {most}. Send fewer.")
    try:
        values = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_unique)
        is_deep = opened > MAX_DEPTH and _is_deep(values)
    except json.JSONDecodeError as exc:
        raise BrokenBody(f"The body is not valid JSON: {exc.msg} at character {exc.pos}. Correct it.") from exc
    except ValueError as exc:  # a number of thousands of digits, or invalid UTF-8
        raise BrokenBody(NO_JSON) from exc
    except RecursionError:
        is_deep = True
    if is_deep:
        raise BrokenBody(f"The body is nested more than {MAX_DEPTH} levels deep. Flatten it.")
    return values


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[object]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises BrokenBody for a duplicate key, of which Python's decoder would drop the first value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        shown = ascii(twice[:SHOWN_CHARACTERS])  # a lone surrogate could not be sent
        param = twice if twice.isidentifier() else None
        place = f"{param}: " if param is not None else ""
        raise BrokenBody(f"{place}duplicate key {shown} in a JSON object. Remove one.", param=param)
    return made
