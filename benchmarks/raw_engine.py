"""The baselines, in a process without a server: BatchGenerator with a detokeniser, and a lean loop without text.

The benchmark starts it as `python -m benchmarks.raw_engine MODEL`. It reads a workload, or a prompt with part of its KV
cache computed, as a line of JSON, and answers with a line of JSON.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.utils import load_model

from benchmarks.workload import ReadyPrompt, StreamTimes, Workload, summarise


def main() -> None:
    folder = Path(sys.argv[1])
    model, _ = load_model(folder)
    if not mx.is_available(mx.gpu):
        model.set_dtype(mx.float32)  # as the server's worker
    tokenizer = load_tokenizer(folder)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "workload" in question:
            answer = run(model, tokenizer, Workload(**question["workload"]))
        elif "lean" in question:
            answer = {"tokens_per_second": lean_rate(model, tokenizer, Workload(**question["lean"]))}
        else:
            answer = {"ttft": first_token(model, tokenizer, ReadyPrompt(**question["ready_prompt"])).seconds}
        print(json.dumps(answer), flush=True)


def run(model: Any, tokenizer: Any, workload: Workload) -> dict[str, Any]:
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
    rows = workload.batch_rows if workload.batch_rows is not None else workload.concurrency
    generator = BatchGenerator(model, completion_batch_size=rows)
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


def lean_rate(model: Any, tokenizer: Any, workload: Workload) -> float:
    """Greedy tokens per second without text: what the model and its caches allow. Nothing joins or leaves a wave."""
    began = time.perf_counter()
    for texts in workload.prompts():
        prompts = [tokenizer.encode(text) for text in texts]
        rows = [_prefilled(model, prompt[:-1]) for prompt in prompts]
        cache = [layers[0].merge(list(layers)) for layers in zip(*rows, strict=True)]
        inputs = mx.array([prompt[-1] for prompt in prompts])
        for _ in range(workload.output_tokens):
            drawn = mx.argmax(model(inputs[:, None], cache=cache)[:, -1, :], axis=-1)
            mx.async_eval(drawn)  # type: ignore[no-untyped-call]
            inputs.tolist()
            inputs = drawn
        inputs.tolist()
    return workload.waves * workload.concurrency * workload.output_tokens / (time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class FirstToken:
    token: int
    seconds: float


def first_token(model: Any, tokenizer: Any, ready: ReadyPrompt) -> FirstToken:
    """The clock starts with the prompt's text, after the KV cache of its first `ready_tokens` tokens is evaluated."""
    known = tokenizer.encode(ready.prompt)[: ready.ready_tokens]
    cache = _prefilled(model, known)
    started = time.perf_counter()
    rest = tokenizer.encode(ready.prompt)[ready.ready_tokens :]
    generator = BatchGenerator(model)
    generator.insert([rest], max_tokens=[2], caches=[cache], all_tokens=[known])
    token = generator.next_generated()[0].token
    detokenizer = tokenizer.detokenizer
    detokenizer.add_token(token)
    _ = detokenizer.last_segment
    seconds = time.perf_counter() - started
    generator.close()
    return FirstToken(token, seconds)


def _prefilled(model: Any, tokens: list[int]) -> list[Any]:
    cache: list[Any] = make_prompt_cache(model)
    for begin in range(0, len(tokens), 512):
        model(mx.array([tokens[begin : begin + 512]]), cache=cache)
        mx.eval([layer.state for layer in cache])
    return cache


if __name__ == "__main__":
    main()
