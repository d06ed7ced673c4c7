"""A plain loop over texts with the server's own model class: `python -m benchmarks.plain_encoder FOLDER`.

Reads a JSON list of texts from each line of stdin, encodes them one by one, and writes the seconds taken.
"""

import json
import sys
import time
from pathlib import Path

import mlx.core as mx
from tokenizers import Tokenizer

from mlx_manager.mlx_server.engine.embedding.model import load_embedding_model
from mlx_manager.mlx_server.engine.embedding.recipe import read_recipe


def main() -> None:
    folder = Path(sys.argv[1])
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    if on_cpu:
        mx.disable_compile()  # as in the worker
    model = load_embedding_model(folder, read_recipe(folder, "embed"), on_cpu=on_cpu)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for line in sys.stdin:
        rows = [tokenizer.encode(text).ids for text in json.loads(line)]
        began = time.perf_counter()
        for row in rows:
            mx.eval(model(mx.array([row]), [len(row)], [0]))
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
