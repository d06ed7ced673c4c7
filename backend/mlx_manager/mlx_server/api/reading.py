"""How the routes read a JSON body: parsed, bounded and validated, away from the event loop where it is large.

A key that an object has twice is refused, where Python's parser drops the first.
"""

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from mlx_manager.mlx_server.api.dependencies import server_state
from mlx_manager.mlx_server.api.edge.json_shape import off_loop
from mlx_manager.mlx_server.api.edge.refusals import is_json
from mlx_manager.mlx_server.protocols.sizes import SizeLimits, check_sizes

T = TypeVar("T")
SHOWN_CHARACTERS = 100
_JSON_HEADER = (b"content-type", b"application/json")


class JsonRoute(APIRoute):
    """`APIRouter(route_class=JsonRoute)`. FastAPI gets the body as the model that it would make of it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()
        model = self.body_field.field_info.annotation if self.body_field is not None else None
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)

        async def handler(request: Request) -> Response:
            body = await request.body()
            if not body or not is_json(request.scope):
                return await original(request)
            state = await server_state(request)
            limits = state.size_limits if state is not None else None
            return await original(_ReadRequest(request, body, await off_loop(len(body), _read, body, model, limits)))

        return handler


async def converted(request: Request, convert: Callable[..., T], *arguments: object) -> T:
    """What `convert` makes of the request's body, away from the event loop where that is large."""
    return await off_loop(len(await request.body()), convert, *arguments)


class _ReadRequest(Request):
    """`request`, whose body has been read."""

    def __init__(self, request: Request, body: bytes, model: BaseModel) -> None:
        headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
        super().__init__({**request.scope, "headers": [*headers, _JSON_HEADER]}, request.receive)
        self._body = body
        self._json = model


def _read(body: bytes, model: type[BaseModel], limits: SizeLimits | None) -> BaseModel:
    """Raises RequestValidationError, and InvalidRequest for a body that holds too much. Pure."""
    try:
        values = json.loads(body, object_pairs_hook=_unique)
        if limits is not None:
            check_sizes(values, limits)
        return model.model_validate(values)
    except ValidationError as exc:
        faults = exc.errors(include_url=False)
        raise RequestValidationError([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from exc
    except json.JSONDecodeError as exc:
        raise _fault("json_invalid", exc.pos, f"The body is not valid JSON: {exc.msg} at character {exc.pos}.") from exc
    except (ValueError, RecursionError) as exc:
        raise _fault("json_invalid") from exc


def _fault(kind: str, place: int | str | None = None, message: str = "") -> RequestValidationError:
    loc = ("body", place) if place is not None else ("body",)
    return RequestValidationError([{"type": kind, "loc": loc, "msg": message}])


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = keys.most_common(1)[0][0]
        shown = ascii(twice[:SHOWN_CHARACTERS])  # a lone surrogate could not be sent
        raise _fault("duplicate_key", twice, f"duplicate key {shown} in a JSON object")
    return made
