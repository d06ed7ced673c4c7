"""POST /v1/responses, and the endpoints of a stored response."""

import asyncio
import contextlib
from typing import Annotated, Literal, TypeVar
from uuid import uuid4

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.api.reading import JsonRoute, converted
from mlx_manager.mlx_server.api.respond import count_tokens, parsed, respond
from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.responses import input_items
from mlx_manager.mlx_server.protocols.responses_writer import ResponsesChat, ResponsesWriter
from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.schemas import responses as schemas
from mlx_manager.mlx_server.services.response_store import StoredResponse
from mlx_manager.mlx_server.services.truncation import without_oldest_turns

router = APIRouter(tags=["responses"])
_creating = APIRouter(route_class=JsonRoute)
BodyT = TypeVar("BodyT", bound=schemas.InputTokensRequest)
_ITEM: TypeAdapter[schemas.AnyItem] = TypeAdapter(schemas.AnyItem)
CANCEL_SECONDS = 5.0
"""Longest wait for the end of a cancelled response."""


@_creating.post("/responses", response_model=schemas.Response)
async def create_response(body: schemas.ResponsesRequest, request: Request, state: State) -> Response:
    server = require(state)
    body = _with_conversation(body, request, server)
    generation: ResponsesChat = await parsed(body, request, server)
    if generation.truncates:
        events = without_oldest_turns(server.inference.generate, generation)
    else:
        events = server.inference.generate(generation)
    if body.store is False:
        return await respond(request, events, ResponsesWriter(generation), body.stream)
    items = await converted(request, lambda: [_as_json(item) for item in input_items(body)])
    snapshot = ResponsesWriter(generation).snapshot()
    stored = server.responses.begin(_owner(request), items, snapshot, generation.record)
    return await respond(request, stored.cancellable(events), ResponsesWriter(generation, stored), body.stream)


@_creating.post("/responses/input_tokens")
async def count_input_tokens(body: schemas.InputTokensRequest, request: Request, state: State) -> schemas.InputTokens:
    """The number of prompt tokens of the same body in /v1/responses."""
    body = _with_conversation(body, request, require(state))
    return schemas.InputTokens(input_tokens=await count_tokens(body, request, state))


@router.get("/responses/{response_id}", response_model=schemas.Response)
async def retrieve_response(response_id: str, request: Request, state: State, stream: bool = False) -> Response:
    if stream:
        raise UnsupportedParameter("A stored response cannot be streamed again. Remove 'stream'.", param="stream")
    return _sent(_stored(response_id, request, state))


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, request: Request, state: State) -> schemas.DeletedResponse:
    stored = _stored(response_id, request, state)
    require(state).responses.delete(stored)
    return schemas.DeletedResponse(id=response_id)


@router.post("/responses/{response_id}/cancel", response_model=schemas.Response)
async def cancel_response(response_id: str, request: Request, state: State) -> Response:
    """Stops a running response and keeps what it has generated."""
    stored = _stored(response_id, request, state)
    stored.cancel()
    with contextlib.suppress(TimeoutError):  # its client reads slowly
        async with asyncio.timeout(CANCEL_SECONDS):
            await stored.ended.wait()
    return _sent(stored)


@router.get("/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    request: Request,
    state: State,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> schemas.ItemList:
    items = [msgspec.json.decode(item, type=dict[str, object]) for item in _stored(response_id, request, state).items]
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [i for i, item in enumerate(items) if item.get("id") == after]
        if not places:
            raise InvalidRequest(
                f"Unknown item {after[:100]!r} in this response. Use the id of a listed item.", param="after"
            )
        items = items[places[0] + 1 :]
    page = items[:limit]
    first_id, last_id = (str(page[0]["id"]), str(page[-1]["id"])) if page else (None, None)
    return schemas.ItemList(data=page, first_id=first_id, last_id=last_id, has_more=len(items) > limit)


router.include_router(_creating)


def _owner(request: Request) -> str | None:
    return exchange_of(request).key_name


def _stored(response_id: str, request: Request, state: ServerState | None) -> StoredResponse:
    return require(state).responses.get(response_id, _owner(request))


def _sent(stored: StoredResponse) -> Response:
    return Response(stored.body, media_type="application/json")


def _with_conversation(body: BodyT, request: Request, server: ServerState) -> BodyT:
    """The body with its whole conversation as input: previous items and resolved references."""
    items = [_found(item, request, server) for item in input_items(body)]
    if body.previous_response_id is not None:
        before = server.responses.conversation(body.previous_response_id, _owner(request))
        items = [*map(_item_of, before), *items]
    limit = request.app.state.bounds.max_messages
    if len(items) > limit:
        raise InvalidRequest(
            f"The input and the previous responses have {len(items)} items, and the limit is {limit}. Send fewer.",
            param="input",
        )
    return body.model_copy(update={"input": items})


def _found(item: schemas.AnyItem, request: Request, server: ServerState) -> schemas.AnyItem:
    """The item that a reference names. An unknown reference stays, and the protocol rejects it."""
    if item.type != "item_reference" or item.id is None:
        return item
    found = server.responses.item(item.id, _owner(request))
    return _item_of(found) if found is not None else item


def _item_of(stored: bytes) -> schemas.AnyItem:
    return _ITEM.validate_json(stored)


def _as_json(item: schemas.AnyItem) -> bytes:
    """The item in the form that `input_items` lists: with an id, and with the text of a message as a part."""
    written: JsonObject = {"type": item.type, **item.model_dump(exclude_unset=True)}
    if written.get("id") is None:
        written["id"] = f"{_PREFIXES.get(item.type, 'item')}_{uuid4().hex}"
    if item.type == "message" and isinstance(written.get("content"), str):
        kind = "output_text" if written.get("role") == "assistant" else "input_text"
        written["content"] = [{"type": kind, "text": written["content"]}]
    return msgspec.json.encode(written)


_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}
