"""The yardstick: mlx-lm's BatchGenerator and its streaming detokeniser, in a process of their own, with no server.

Started by the benchmark as `python -m benchmarks.raw_engine MODEL`; takes a workload as a line of JSON, and answers so.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import load_model

from benchmarks.workload import StreamTimes, Workload, summarise


def main() -> None:
    folder = Path(sys.argv[1])
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    tokenizer = load_tokenizer(folder)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(model, tokenizer, Workload(**json.loads(line)))), flush=True)


def run(model: Any, tokenizer: Any, workload: Workload) -> dict[str, float]:
    waves: list[list[StreamTimes]] = []
    cpu_before, wall_before = time.process_time(), time.perf_counter()
    for texts in workload.prompts():
        waves.append(run_wave(model, tokenizer, texts, workload))
    wall_seconds = time.perf_counter() - wall_before
    cpu_seconds = time.process_time() - cpu_before
    tokens = sum(stream.tokens for wave in waves for stream in wave)
    return summarise(
        waves,
        wall_seconds,
        engine_cpu_us=1e6 * cpu_seconds / tokens,
        engine_peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    ).as_dict()


def run_wave(model: Any, tokenizer: Any, texts: list[str], workload: Workload) -> list[StreamTimes]:
    started = time.perf_counter()
    generator = BatchGenerator(model, completion_batch_size=workload.concurrency)
    prompts = [tokenizer.encode(text) for text in texts]
    uids = generator.insert(prompts, max_tokens=[workload.output_tokens] * len(prompts))
    streams = {uid: (StreamTimes(), tokenizer.detokenizer) for uid in uids}
    running = len(uids)
    while running:
        _, responses = generator.next()
        for response in responses:
            times, detokenizer = streams[response.uid]
            detokenizer.add_token(response.token)
            _ = detokenizer.last_segment
            times.tokens += 1
            times.arrivals.append(time.perf_counter() - started)
            running -= response.finish_reason is not None
    generator.close()
    return [times for times, _ in streams.values()]


if __name__ == "__main__":
    main()
