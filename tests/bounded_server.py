"""Runs the server with smaller bounds, given as JSON, so that tests can reach them: `python bounded_server.py JSON`."""

import json
import sys

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.main import serve

if __name__ == "__main__":
    serve(Bounds(**json.loads(sys.argv[1])))
