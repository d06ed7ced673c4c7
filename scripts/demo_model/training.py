"""The training loop: batches of tokens from the dataset, Muon and AdamW, and checkpoints from which a killed run
resumes exactly."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from demo_model.chat import Segment
from demo_model.dataset import documents
from demo_model.network import Llama, Shape

logger = logging.getLogger(__name__)

HEADER_WEIGHT = 0.1
PROMPT_WEIGHT = 0.02
PROMPT_SHARE = 0.1
"""Share of documents with a small loss on prompts too, so that text after a turn's end looks like a chat."""


@dataclass(frozen=True, slots=True)
class Plan:
    shape: Shape
    seed: int
    steps: int
    tokens_per_step: int = 8192
    microbatch_tokens: int = 2048
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    warmup_steps: int = 100
    steady_share: float = 0.4
    checkpoint_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids, each with the weight of its loss."""

    ids: list[int]
    weights: list[float]


def train(plan: Plan, tokenizer: Tokenizer, checkpoint: Path, on_checkpoint: Callable[[Llama, int], None]) -> None:
    """Trains to the last step, from `checkpoint` if it exists. Also saves a checkpoint at the last step."""
    torch.manual_seed(plan.seed)
    model = Llama(plan.shape)
    optimizers = _optimizers(model, plan)
    first = _restore(checkpoint, model, optimizers)
    started = saved = time.monotonic()
    for step in range(first, plan.steps):
        _set_rates(optimizers, plan, step)
        loss = _step(model, optimizers, plan, tokenizer, step)
        now = time.monotonic()
        if step % 50 == 0:
            pace = (now - started) / (step - first + 1)
            logger.info("step %d of %d: loss %.4f, %.3f s a step", step, plan.steps, loss, pace)
        if now - saved > plan.checkpoint_seconds or step == plan.steps - 1:
            _save(checkpoint, model, optimizers, step + 1)
            on_checkpoint(model, step + 1)
            saved = now


def batches(plan: Plan, tokenizer: Tokenizer, step: int) -> list[tuple[Tensor, Tensor]]:
    """The step's microbatches, each (token ids, weights) of shape (B, T): grouped by length, padded with 0."""
    drawn: list[Document] = []
    total = 0
    for document in _encoded(tokenizer, plan.seed, step):
        drawn.append(document)
        total += len(document.ids)
        if total >= plan.tokens_per_step:
            break
    drawn.sort(key=lambda document: len(document.ids))
    groups: list[list[Document]] = [[]]
    for document in drawn:
        if groups[-1] and (len(groups[-1]) + 1) * len(document.ids) > plan.microbatch_tokens:
            groups.append([])
        groups[-1].append(document)
    return [_padded(group) for group in groups]


def _step(model: Llama, optimizers: list[torch.optim.Optimizer], plan: Plan, tokenizer: Tokenizer, step: int) -> float:
    microbatches = batches(plan, tokenizer, step)
    total_weight = sum(float(weights[:, 1:].sum()) for _, weights in microbatches)
    total_loss = 0.0
    for ids, weights in microbatches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(model, ids, weights) / total_weight
        loss.backward()  # type: ignore[no-untyped-call]
        total_loss += loss.item()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return total_loss


def _loss(model: Llama, ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of cross-entropies. Computes logits only where the weight is not zero."""
    hidden = model(ids[:, :-1])
    counted = weights[:, 1:] > 0
    logits = model.logits(hidden[counted]).float()
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    return (losses * weights[:, 1:][counted]).sum()


def _encoded(tokenizer: Tokenizer, seed: int, step: int) -> Iterator[Document]:
    rng = Random(f"{seed}/{step}/weights")
    for segments in documents(seed, step):
        encodings = tokenizer.encode_batch([segment.text for segment in segments], add_special_tokens=False)
        with_prompts = rng.random() < PROMPT_SHARE
        ids: list[int] = []
        weights: list[float] = []
        for segment, encoding in zip(segments, encodings, strict=True):
            ids += encoding.ids
            weights += [_weight(segment, len(encoding.ids), with_prompts)] * len(encoding.ids)
        yield Document(ids, weights)


def _weight(segment: Segment, length: int, with_prompts: bool) -> float:
    """An answer's weight is the square root of its length, so that stories do not dominate greetings."""
    if segment.kind == "answer":
        return 1 / math.sqrt(length)
    if segment.kind == "header":
        return HEADER_WEIGHT
    return PROMPT_WEIGHT if with_prompts else 0.0


def _padded(group: list[Document]) -> tuple[Tensor, Tensor]:
    length = max(len(document.ids) for document in group)
    ids = torch.tensor([document.ids + [0] * (length - len(document.ids)) for document in group])
    weights = torch.tensor([document.weights + [0.0] * (length - len(document.ids)) for document in group])
    return ids, weights


def _optimizers(model: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [weight for weight in model.layers.parameters() if weight.ndim == 2]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    return [
        torch.optim.Muon(matrices, lr=plan.muon_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def _set_rates(optimizers: list[torch.optim.Optimizer], plan: Plan, step: int) -> None:
    """Warms up, holds, and decays to zero along a cosine."""
    steady = plan.steady_share * plan.steps
    progress = max(0.0, (step - steady) / (plan.steps - steady))
    factor = min(1.0, (step + 1) / plan.warmup_steps) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
    for optimizer, rate in zip(optimizers, (plan.muon_rate, plan.adam_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def _save(path: Path, model: Llama, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"step": step, "model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def _restore(path: Path, model: Llama, optimizers: list[torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    logger.info("going on from step %d in %s", state["step"], path)
    return int(state["step"])
