"""Starts a worker on the machine of a rank: its connection to the API process is stdin and stdout, which ssh connects.

Run as `python -m mlx_manager.mlx_server.engine.remote_worker`.
"""

import os
import sys

from mlx_manager.mlx_server.engine.launch import worker_command, worker_environment
from mlx_manager.mlx_server.utils.mlx_backend import why_mlx_cannot_run


def main() -> None:
    fault = why_mlx_cannot_run()
    if fault is not None:
        sys.exit(fault)
    command = [*worker_command(), "--stdio"]
    os.execve(command[0], command, worker_environment())


if __name__ == "__main__":
    main()
