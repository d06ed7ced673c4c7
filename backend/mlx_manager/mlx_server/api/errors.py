"""Exceptions to error responses, each in the envelope of the protocol that the request speaks."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_manager.mlx_server.api.edge.json_route import BodyRefused
from mlx_manager.mlx_server.api.edge.rules import protocol_of
from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.errors import BrokenBody, MethodNotAllowed, ServerError, UnknownPath

_MAX_FAULTS_NAMED = 3
_NO_JSON = "The body must be a JSON object in UTF-8, sent with the header Content-Type: application/json."


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _broken_body)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _error)
    app.add_exception_handler(ServerError, _error)


async def _error(request: Request, exc: Exception) -> JSONResponse:
    exchange = exchange_of(request)
    exchange.error = exc
    reply = protocol_of(request.scope).error(exc, exchange.request_id)
    return JSONResponse(reply.body, reply.status, dict(reply.headers))


async def _broken_body(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)
    faults = [(_field(fault), _message(fault)) for fault in exc.errors()]
    named = "; ".join(f"{field}: {message}" if field else message for field, message in faults[:_MAX_FAULTS_NAMED])
    return await _error(request, BrokenBody(named, param=faults[0][0] or None))


async def _http_error(request: Request, exc: Exception) -> JSONResponse:
    """Unknown paths and methods; and bodies that FastAPI cannot parse, which break the schema too."""
    assert isinstance(exc, HTTPException)
    if isinstance(exc, BodyRefused):
        return await _error(request, BrokenBody(exc.detail, param=exc.param))
    if exc.status_code == 400:
        return await _error(request, BrokenBody(_NO_JSON))
    kind = MethodNotAllowed if exc.status_code == 405 else UnknownPath
    response = await _error(request, kind(f"{exc.detail}: {request.method} {request.url.path}"))
    response.headers.update(exc.headers or {})
    return response


def _message(fault: dict[str, Any]) -> str:
    if fault["loc"] == ("body",):
        return _NO_JSON
    return str(fault["msg"])


def _field(fault: dict[str, Any]) -> str:
    """("body", "messages", 0, "role") is messages[0].role. pydantic's names for a union's variants are left out."""
    field = ""
    for part in fault["loc"][1:] if fault["type"] != "json_invalid" else ():
        if isinstance(part, int):
            field += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "list", "dict"):
            field += f".{part}" if field else part
    return field
