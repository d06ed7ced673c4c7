"""`serve`: passes the command line's settings to the server as environment variables, which override others."""

import os
from pathlib import Path


def serve(
    model: str | None,
    host: str | None,
    port: int | None,
    config: Path | None,
    insecure_no_auth: bool,
    no_warm_up: bool,
) -> None:
    """Runs the server until a signal ends it."""
    given: dict[str, object] = {"DEFAULT_MODEL": model, "HOST": host, "PORT": port, "CONFIG": config}
    given |= {"INSECURE_NO_AUTH": True if insecure_no_auth else None, "WARM_UP": False if no_warm_up else None}
    os.environ.update({f"MLX_SERVER_{name}": str(value) for name, value in given.items() if value is not None})
    from mlx_manager.mlx_server.main import serve as serve_forever  # imports the settings

    serve_forever()
