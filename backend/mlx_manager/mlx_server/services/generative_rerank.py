"""Rankings by a generative model: Qwen3-Reranker, which answers "yes" or "no" for each document.

The score is P(yes) / (P(yes) + P(no)) (https://arxiv.org/abs/2506.05176). Each document is two sequences of one token
that share its prompt. A bias forces the token "yes" or "no", and the engine returns its logprob.
"""

import asyncio
import math
import re
import time
from collections.abc import Iterator, Sequence

from mlx_manager.mlx_server.embedding_types import WHOLE_MODEL, Ranking, RerankRequest
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.errors import ContextLengthExceeded, InvalidRequest
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.defaults import read_json
from mlx_manager.mlx_server.models.pool import LoadedModel, ModelPoolManager
from mlx_manager.mlx_server.records import GenerationRecord
from mlx_manager.mlx_server.types import SamplingParams

DOCUMENTS_AT_ONCE = 16
"""Leaves other requests room in the batch."""
CERTAIN_BIAS = 1e6
_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_PROMPT_START = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_PROMPT_END = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_NAME = re.compile(r"rerank", re.IGNORECASE)


def is_generative_reranker(entry: ModelEntry) -> bool:
    """Decides by the name: the files look like those of any language model. Reads files."""
    folder = entry.local_folder()
    if not _NAME.search(entry.id) and not _NAME.search(entry.repo_id):
        return False
    return entry.kind in (None, "generate") and (
        folder is None or read_json(folder / "config.json").get("model_type") == "qwen3"
    )


async def rerank_by_generation(pool: ModelPoolManager, entry: ModelEntry, request: RerankRequest) -> Ranking:
    record, asked_at = request.record, time.time()
    at_once = 2 * min(len(request.documents), DOCUMENTS_AT_ONCE)
    async with pool.lease(entry, at_once, request.keep_alive_seconds) as model:
        record.note_lease(model.model_id, model.loaded_at, asked_at)
        answers = _answer_tokens(model)
        prompts = await asyncio.to_thread(lambda: list(_prompts(model, request)))
        record.prompt_tokens = sum(map(len, prompts))
        record.admitted = time.perf_counter()
        scores: list[float] = []
        for start in range(0, len(prompts), DOCUMENTS_AT_ONCE):
            scores += await _scores(model, prompts[start : start + DOCUMENTS_AT_ONCE], answers, record)
        record.prefilled = time.perf_counter()
    return Ranking(tuple(scores), record.prompt_tokens)


def _answer_tokens(model: LoadedModel) -> tuple[int, int]:
    yes, no = (model.tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no"))
    if len(yes) != 1 or len(no) != 1:
        raise InvalidRequest(
            f"Model {model.model_id!r} is not a reranker: its vocabulary lacks 'yes' and 'no'. Use another model.",
            param="model",
        )
    return yes[0], no[0]


def _prompts(model: LoadedModel, request: RerankRequest) -> Iterator[list[int]]:
    """The token ids of each prompt. Raises ContextLengthExceeded. Blocks."""

    def ids(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    before, after = ids(_PROMPT_START), ids(_PROMPT_END)
    largest = min(filter(None, (model.defaults.context_length, model.engine.largest_sequence_tokens))) - 1
    limit = largest if request.truncate_tokens == WHOLE_MODEL else request.truncate_tokens
    instruction = request.instruction if request.instruction is not None else _INSTRUCTION
    for index, document in enumerate(request.documents):
        if request.document_tokens is not None:
            document = model.tokenizer.decode(ids(document)[: request.document_tokens])
        text = ids(f"<Instruct>: {instruction}\n<Query>: {request.query}\n<Document>: {document}")
        if limit is not None:
            text = text[: max(1, limit - len(before) - len(after))]
        prompt = [*before, *text, *after]
        if len(prompt) > largest:
            raise ContextLengthExceeded(
                f"documents[{index}] has {len(prompt)} tokens with the query, but model {model.model_id!r} reads "
                f"{largest}. Shorten it, or send truncate_prompt_tokens = -1.",
                param=f"documents[{index}]",
                tokens=len(prompt),
                limit=largest,
            )
        yield prompt


async def _scores(
    model: LoadedModel, prompts: Sequence[list[int]], answers: tuple[int, int], record: GenerationRecord
) -> list[float]:
    submissions = [
        Submit(0, prompt, 1, [], SamplingParams(seed=0, temperature=0, logit_bias={answer: CERTAIN_BIAS}), logprobs=0)
        for prompt in prompts
        for answer in answers
    ]
    logprobs = [0.0] * len(submissions)
    async with model.engine.generate(submissions) as sequences:
        async for index, tokens in sequences:
            for score in tokens.scores:
                logprobs[index] = score.logprob
    record.cached_tokens += sum(member.cached_tokens for member in sequences.members[::2])
    return [_sigmoid(yes - no) for yes, no in zip(logprobs[::2], logprobs[1::2], strict=True)]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
