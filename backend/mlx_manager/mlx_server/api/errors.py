"""Exceptions to error responses, each in the envelope of the protocol that the request speaks."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.api.reading import NO_JSON
from mlx_manager.mlx_server.api.scopes import protocol_of
from mlx_manager.mlx_server.errors import BrokenBody, MethodNotAllowed, ServerError, UnknownPath

_MAX_FAULTS_NAMED = 3

_WHERE_ENDPOINTS_ARE = (
    "The base URL of OpenAI's clients ends with /v1, as in http://127.0.0.1:8000/v1, and that of Anthropic's does not; "
    "GET /docs lists all endpoints."
)


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
    """Unknown paths and methods."""
    assert isinstance(exc, HTTPException)
    message = f"{exc.detail}: {request.method} {request.url.path}"
    unknown = UnknownPath(f"{message}. {_WHERE_ENDPOINTS_ARE}")
    response = await _error(request, MethodNotAllowed(message) if exc.status_code == 405 else unknown)
    response.headers.update(exc.headers or {})
    return response


def _message(fault: dict[str, Any]) -> str:
    if fault["loc"] == ("body",):
        return NO_JSON
    return str(fault["msg"])


def _field(fault: dict[str, Any]) -> str:
    """("body", "messages", 0, "role") is messages[0].role. pydantic's names for a union's variants are left out."""
    field = ""
    for part in fault["loc"][1:]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "list", "dict"):
            field += f".{part}" if field else part
    return field
