"""Measures embeddings: a batch of mixed texts against a plain loop, and a large job beside running streams."""

import asyncio
import json
import random
import string
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import mlx.core as mx
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.load import LIMIT_SECONDS, Target, run, run_waves
from benchmarks.processes import ENVIRONMENT, PeakMemory, Server
from benchmarks.workload import Workload

TEXTS = 64
JOB_TEXTS = 2048
JOB_WORDS = 24
SHORT_WORDS = 16
LONGEST_WORDS = 96
STREAMS = 4
STREAM_TOKENS = 1_200
PROMPT_WORDS = 8
SETTLE_SECONDS = 1.0
VOCABULARY, SIZE, INNER, LAYERS, HEADS = 8_192, 384, 1_536, 6, 12
"""The dimensions of all-MiniLM-L6-v2 with a smaller vocabulary and random weights."""


@dataclass(frozen=True, slots=True)
class EmbeddingRow:
    """Medians of the runs, in milliseconds; rates are tokens of all streams together."""

    texts: int
    tokens: int
    at_once_ms: float
    loop_ms: float
    speedup: float
    alone_ms: float
    forward_ms: float
    alone_ratio: float
    tokens_per_second_alone: float
    tokens_per_second_beside: float
    rate_kept: float
    memory: PeakMemory | None


def measure(server: Server, folder: Path, runs: int) -> EmbeddingRow:
    """The server and the plain loop alternate, each with one thread."""
    mixed, short = _mixed_texts(random.Random(0)), _words(random.Random(1), SHORT_WORDS)
    name = folder.name
    at_once: list[float] = []
    alone: list[float] = []
    loops: list[float] = []
    forwards: list[float] = []
    beside: list[tuple[float, float]] = []
    with closing(HTTPConnection(*server.target.address, timeout=LIMIT_SECONDS)) as client, _PlainLoop(folder) as plain:
        for warm_up in (True, *[False] * runs):
            timed = [_embed(client, name, mixed), min(_embed(client, name, [short]) for _ in range(5))]
            raw = [plain.seconds(mixed), min(plain.seconds([short]) for _ in range(5))]
            if not warm_up:
                for column, seconds in zip((at_once, alone, loops, forwards), [*timed, *raw], strict=True):
                    column.append(seconds)
        for _ in range(runs):
            beside.append(run(_beside_streams(server.target, name, seed=len(beside) + 1)))
    return EmbeddingRow(
        texts=len(mixed),
        tokens=sum(len(text.split()) for text in mixed),
        at_once_ms=1000 * median(at_once),
        loop_ms=1000 * median(loops),
        speedup=median(loops) / median(at_once),
        alone_ms=1000 * median(alone),
        forward_ms=1000 * median(forwards),
        alone_ratio=median(alone) / median(forwards),
        tokens_per_second_alone=median(quiet for quiet, _ in beside),
        tokens_per_second_beside=median(during for _, during in beside),
        rate_kept=median(during / quiet for quiet, during in beside),
        memory=server.peak_memory(),
    )


def make_encoder(folder: Path) -> Path:
    """Writes the model into `folder` unless it exists. The weights are always the same."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": VOCABULARY, "hidden_size": SIZE}
    config |= {"intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512, "type_vocab_size": 2}))
    words = ["[UNK]", *(_word(number) for number in range(VOCABULARY - 1))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    mx.random.seed(0)
    shapes = {"embeddings.word_embeddings.weight": (VOCABULARY, SIZE), "embeddings.LayerNorm.weight": (SIZE,)}
    shapes |= {"embeddings.position_embeddings.weight": (512, SIZE), "embeddings.LayerNorm.bias": (SIZE,)}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, SIZE)}
    for layer in range(LAYERS):
        for part, rows, columns in (
            *((f"attention.{name}", SIZE, SIZE) for name in ("self.query", "self.key", "self.value", "output.dense")),
            ("intermediate.dense", INNER, SIZE),
            ("output.dense", SIZE, INNER),
        ):
            name = f"encoder.layer.{layer}.{part}"
            shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            name = f"encoder.layer.{layer}.{norm}"
            shapes |= {f"{name}.weight": (SIZE,), f"{name}.bias": (SIZE,)}
    weights = {name: 0.05 * mx.random.normal(shape) for name, shape in shapes.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def _word(number: int) -> str:
    letters = ""
    for _ in range(3):
        number, place = divmod(number, 26)
        letters += string.ascii_lowercase[place]
    return letters


def _words(rng: random.Random, count: int) -> str:
    return " ".join(_word(rng.randrange(VOCABULARY - 1)) for _ in range(count))


def _mixed_texts(rng: random.Random) -> list[str]:
    """Most lengths are short, like sentences and questions, and some are long."""
    return [_words(rng, min(LONGEST_WORDS, 3 + int(rng.expovariate(1 / 16)))) for _ in range(TEXTS)]


def _embed(client: HTTPConnection, model: str, texts: list[str]) -> float:
    body = json.dumps({"model": model, "input": texts, "encoding_format": "base64"})
    began = time.perf_counter()
    client.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    response = client.getresponse()
    answer = response.read()
    seconds = time.perf_counter() - began
    if response.status != 200:
        raise RuntimeError(f"the server refused with {response.status}: {answer!r}")
    return seconds


class _PlainLoop:
    """`benchmarks.plain_encoder` on the same model, with the same BLAS as the server's worker."""

    def __init__(self, folder: Path) -> None:
        from mlx_manager.mlx_server.engine.launch import worker_environment

        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.plain_encoder", str(folder)],
            env={**worker_environment(), **ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "_PlainLoop":
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def seconds(self, texts: list[str]) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


async def _beside_streams(target: Target, model: str, seed: int) -> tuple[float, float]:
    """Tokens per second of a wave of streams alone, and of another one while a job of 2,048 texts runs."""
    rng = random.Random(seed)
    texts = [_words(rng, JOB_WORDS) for _ in range(JOB_TEXTS)]
    body: dict[str, Any] = {"model": model, "input": texts, "encoding_format": "base64"}
    alone = await _wave_rate(target, seed)
    async with httpx.AsyncClient(base_url=target.base_url, timeout=LIMIT_SECONDS) as client:
        job = asyncio.create_task(client.post("/v1/embeddings", json=body))
        await asyncio.sleep(SETTLE_SECONDS)
        beside = await _wave_rate(target, -seed)
        if job.done():
            raise RuntimeError(f"the job ended before the streams: {job.result()}")
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
    return alone, beside


async def _wave_rate(target: Target, seed: int) -> float:
    workload = Workload(STREAMS, 1, prompt_words=PROMPT_WORDS, output_tokens=STREAM_TOKENS, seed=seed)
    _, seconds = await run_waves(target, workload)
    return STREAMS * STREAM_TOKENS / seconds
