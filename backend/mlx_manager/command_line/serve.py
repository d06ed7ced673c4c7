"""`serve`: passes the command line's settings to the server as environment variables, which override others."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RankOptions:
    """The options of a model over several ranks; None for those that were not given."""

    ranks: int | None = None
    hosts: Path | None = None
    backend: str | None = None
    parallel: str | None = None


def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    config: Path | None,
    insecure_no_auth: bool,
    no_warm_up: bool,
    group: RankOptions,
) -> None:
    """Runs the server until a signal ends it."""
    given: dict[str, object] = {"DEFAULT_MODEL": model, "HOST": host, "PORT": port, "CONFIG": config}
    given |= {"INSECURE_NO_AUTH": True if insecure_no_auth else None, "WARM_UP": False if no_warm_up else None}
    given |= {"RANKS": group.ranks, "RANK_HOSTS": group.hosts}
    given |= {"RANK_BACKEND": group.backend, "RANK_PARALLEL": group.parallel}
    os.environ.update({f"MLX_SERVER_{name}": str(value) for name, value in given.items() if value is not None})
    from mlx_manager.mlx_server.main import serve as serve_forever  # imports the settings

    serve_forever()
