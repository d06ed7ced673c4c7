"""Turns exceptions into error responses, in the envelope of the request's protocol."""

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

_ENDPOINTS_HINT = (
    "Set the base URL of OpenAI clients to one that ends with /v1, such as http://127.0.0.1:8000/v1, and of Anthropic "
    "clients to one without /v1. GET /docs lists all endpoints."
)
_METHOD_HINT = "Use a method that the Allow header of this answer names."


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
    """Answers unknown paths and methods."""
    assert isinstance(exc, HTTPException)
    message = f"{exc.detail}: {request.method} {request.url.path}"
    unknown = UnknownPath(f"{message}. {_ENDPOINTS_HINT}")
    response = await _error(
        request, MethodNotAllowed(f"{message}. {_METHOD_HINT}") if exc.status_code == 405 else unknown
    )
    response.headers.update(exc.headers or {})
    return response


def _message(fault: dict[str, Any]) -> str:
    if fault["loc"] == ("body",):
        return NO_JSON
    return str(fault["msg"])


def _field(fault: dict[str, Any]) -> str:
    """Formats ("body", "messages", 0, "role") as messages[0].role, without pydantic's names of union variants."""
    field = ""
    for part in fault["loc"][1:]:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "list", "dict"):
            field += f".{part}" if field else part
    return field
