"""Exceptions to error responses, all of them in OpenAI's envelope."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from mlx_manager.mlx_server.api.exchange import exchange_of
from mlx_manager.mlx_server.errors import ServerError
from mlx_manager.mlx_server.protocols.errors import ErrorKind, broken_body, envelope, error_body, status_of

_MAX_FAULTS_NAMED = 3
_NO_JSON = "The body must be a JSON object in UTF-8, sent with the header Content-Type: application/json."

_WHERE_ENDPOINTS_ARE = (
    "The base URL of the OpenAI API ends with /v1, as in http://127.0.0.1:8000/v1; GET /docs lists all endpoints."
)


def install_error_handlers(app: FastAPI, validation_error_status: int) -> None:
    broken = broken_body(validation_error_status)

    async def validation_error(request: Request, exc: Exception) -> JSONResponse:
        assert isinstance(exc, RequestValidationError)
        exchange_of(request).error = exc
        faults = [(_field(fault), _message(fault)) for fault in exc.errors()]
        named = "; ".join(f"{field}: {message}" if field else message for field, message in faults[:_MAX_FAULTS_NAMED])
        return JSONResponse(envelope(broken, named, faults[0][0] or None), broken.status)

    async def http_error(request: Request, exc: Exception) -> JSONResponse:
        """Unknown paths and methods."""
        assert isinstance(exc, HTTPException)
        kind = ErrorKind(exc.status_code, "invalid_request_error", exc.detail.lower().replace(" ", "_"))
        message = f"{exc.detail}: {request.method} {request.url.path}"
        if exc.status_code == 404:
            message += f". {_WHERE_ENDPOINTS_ARE}"
        return JSONResponse(envelope(kind, message, None), exc.status_code, headers=exc.headers)

    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(ServerError, _server_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, _server_error)


async def _server_error(request: Request, exc: Exception) -> JSONResponse:
    exchange_of(request).error = exc
    wait_seconds = exc.retry_after_seconds if isinstance(exc, ServerError) else None
    headers = {"Retry-After": str(wait_seconds)} if wait_seconds is not None else None
    return JSONResponse(error_body(exc), status_of(exc), headers)


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
