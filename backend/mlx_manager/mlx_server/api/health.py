"""GET /health reports whether the process runs, and GET /ready whether the default model can answer."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.api.dependencies import ServerState, State
from mlx_manager.mlx_server.api.guard import Access, access_of

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy", "version": __version__}


@router.get("/api/hello", include_in_schema=False)
async def hello() -> Response:
    """Claude Code's check that its server runs."""
    return Response()


@router.get("/ready")
async def ready(request: Request, state: State) -> JSONResponse:
    """503 with the reason while the default model cannot answer. The state of upstreams does not count.

    Without a valid API key, where the server requires one, the answer has the status only.
    """
    body: dict[str, object] = {"status": "not_running"} if state is None else _readiness(state)
    status = 200 if body["status"] == "ready" else 503
    return JSONResponse(body if access_of(request) is not Access.NONE else {"status": body["status"]}, status)


def _readiness(state: ServerState) -> dict[str, object]:
    pool, model_id = state.pool, state.pool.catalog.default_id
    if pool.draining:
        return {"status": "draining", "model": model_id}
    found = pool.state(model_id)
    body: dict[str, object] = {"status": found.status, "model": model_id}
    if found.error is not None:
        body["error"] = found.error
    if found.progress is not None:
        body["progress"] = asdict(found.progress)
    if found.crash is not None:
        body |= {"crashes_in_a_row": found.crash.in_a_row, "retry_in_seconds": round(found.crash.retry_in_seconds, 1)}
    upstreams = state.upstreams.health()
    if upstreams:
        body["upstreams"] = [asdict(upstream) for upstream in upstreams]
    return body
