"""GET /admin/live: the state of the server every second, as server-sent events, for the page."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict

from fastapi import APIRouter, Depends, Request
from starlette.responses import StreamingResponse

from mlx_manager.mlx_server.api.dependencies import ServerState, State, require
from mlx_manager.mlx_server.api.guard import require_admin
from mlx_manager.mlx_server.api.metrics import models_in_use, read_model
from mlx_manager.mlx_server.observability import RecentRequest, RecentRequests, Tracing
from mlx_manager.mlx_server.schemas.live import LiveFrame, LiveLoad, LiveModel, LiveRequest

router = APIRouter(prefix="/admin", dependencies=[Depends(require_admin)], include_in_schema=False)

FRAME_SECONDS = 1.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@router.get("/live")
async def live(request: Request, state: State) -> StreamingResponse:
    """Ends when the server shuts down, so that it does not hold up the drain."""
    app = request.app.state
    frames = _frames(require(state), app.recent, app.tracing)
    return StreamingResponse(frames, media_type="text/event-stream", headers=_HEADERS)


async def _frames(server: ServerState, recent: RecentRequests, tracing: Tracing) -> AsyncIterator[str]:
    shown = 0
    while not server.pool.draining:
        ended = recent.since(shown)
        shown = ended[-1].number if ended else shown
        yield f"data: {_frame(server, ended, tracing).model_dump_json()}\n\n"
        await asyncio.sleep(FRAME_SECONDS)


def _frame(server: ServerState, ended: list[RecentRequest], tracing: Tracing) -> LiveFrame:
    pool = server.pool
    return LiveFrame(
        time=time.time(),
        draining=pool.draining,
        limit_bytes=pool.budget.limit_bytes,
        used_bytes=pool.used_bytes(),
        models=[LiveModel.model_validate(read_model(pool, model_id)) for model_id in models_in_use(pool)],
        loads=[LiveLoad(model_id=entry.id, **asdict(progress)) for entry, progress in pool.loads()],
        requests=[_request(request, tracing) for request in ended],
        project_url=tracing.project_url(),
    )


def _request(request: RecentRequest, tracing: Tracing) -> LiveRequest:
    shown = LiveRequest.model_validate(request)
    if request.trace_id is not None:
        shown.trace_url = tracing.trace_url(request.trace_id)
    return shown
