"""Says why the prefix cache missed a prompt, from where the engine left the known prompts and what the request changed.

The engine knows tokens only. The history of prompts says what an earlier prompt consisted of. Where both do not decide,
the prompt is rendered again without one of its parts, to see in which part the difference lies.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mlx_manager.mlx_server.engine.sequences import Sequence as EngineSequence
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.records import GenerationRecord, Miss
from mlx_manager.mlx_server.services.prompt_history import Content, PastPrompt, PromptHistory, Served, contents_of
from mlx_manager.mlx_server.services.prompt_parts import Part, part_at
from mlx_manager.mlx_server.services.prompts import Prompt, PromptRules
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest

MIN_MISSED_TOKENS = 32
"""Fewer tokens are not worth a reason: the end of a prompt is often rendered otherwise in the next turn."""

_FIRST_SEEN = Miss("first_seen")


class MissExplainer:
    """Explains the misses of one request's prompts, and remembers the prompts when the request ends."""

    def __init__(
        self,
        history: PromptHistory,
        entry: ModelEntry,
        model: LoadedModel,
        request: ChatRequest | CompletionRequest,
        rules: PromptRules,
    ) -> None:
        self._history = history
        self._model = model
        self._request = request
        self._rules = rules
        self._owner = request.record.key_name
        files = entry.folder if entry.folder is not None else entry.repo_id
        self._served = Served(model.model_id, str(files), str(entry.adapter or ""), model.loaded_at)
        self._prompts: list[PastPrompt] = []

    async def explain(self, prompts: Sequence[Prompt], sequences: Sequence[EngineSequence]) -> None:
        """Writes the miss of the request's prompts, the largest of several, into its record."""
        if self._model.engine.limits.prefix_cache_bytes <= 0 or _skips_cache(self._request):
            return
        contents = contents_of(self._request)
        self._prompts = [
            PastPrompt(content, self._served, len(prompt.tokens))
            for content, prompt in zip(contents, prompts, strict=True)
        ]
        wanted = self._wanted(self._request.record)
        misses = [
            await self._miss(past, prompt, sequence, wanted)
            for past, prompt, sequence in zip(self._prompts, prompts, sequences, strict=True)
        ]
        explained = [miss for miss in misses if miss is not None]
        self._request.record.miss = max(explained, key=lambda miss: miss.missed_tokens, default=None)

    def remember(self) -> None:
        """The engine has stored the prompts: they may be missed from now on."""
        for place, prompt in enumerate(self._prompts):
            answer_id = self._request.id if place == 0 else f"{self._request.id}/{place}"
            self._history.remember(self._owner, answer_id, prompt)

    def _wanted(self, record: GenerationRecord) -> PastPrompt | None:
        """The prompt that the request names for a comparison."""
        answer_id = self._request.compare_with if isinstance(self._request, ChatRequest) else None
        if answer_id is None:
            return None
        found = self._history.find(self._owner, answer_id)
        record.compared = found is not None
        return found

    async def _miss(
        self, now: PastPrompt, prompt: Prompt, sequence: EngineSequence, wanted: PastPrompt | None
    ) -> Miss | None:
        before = wanted if wanted is not None else self._history.nearest(self._owner, now.content)
        cached, evicted = sequence.cached_tokens, sequence.evicted_tokens
        evicted = evicted if evicted > sequence.shared_tokens and evicted - cached >= MIN_MISSED_TOKENS else 0
        known = min(before.tokens, now.tokens - 1) if before is not None else evicted
        missed = max(0, known - cached)
        found = _changed(before, now, missed, evicted, MIN_MISSED_TOKENS if wanted is None else 1)
        if not isinstance(found, list):
            return replace(found, reusable_tokens=cached, missed_tokens=missed) if found is not None else None
        assert before is not None
        position = max(sequence.shared_tokens, evicted)
        part: Part = "messages"
        if isinstance(self._request, ChatRequest):
            part = await part_at(position, found, self._model, self._request, self._rules, prompt)
        return Miss(part, cached, missed, _changed_by(part, before.content, now.content))


def _changed(
    before: PastPrompt | None, now: PastPrompt, missed: int, evicted: int, least: int
) -> Miss | list[Part] | None:
    """The reason; or the parts of the prompt among which its tokens decide; or None if nothing was missed."""
    if before is None:
        return Miss("evicted") if evicted else _FIRST_SEEN
    if missed < least:
        return None
    if before.served.model_id != now.served.model_id:
        is_same = before.served.files == now.served.files and before.served.adapter != now.served.adapter
        return Miss("adapter" if is_same else "model")
    if evicted:
        return Miss("evicted")
    parts = _changed_parts(before.content, now.content)
    if parts == ["messages"] and before.served.loaded_at != now.served.loaded_at:
        return Miss("expired")
    if len(parts) == 1:
        return Miss(parts[0])
    if parts:
        return parts
    if missed < MIN_MISSED_TOKENS:
        return None
    if before.served.loaded_at != now.served.loaded_at:
        return Miss("expired")
    return ["system", "tools", "messages"]


def _changed_parts(before: Content, now: Content) -> list[Part]:
    parts: list[Part] = []
    if before.system != now.system:
        parts.append("system")
    if before.tools != now.tools:
        parts.append("tools")
    if not parts and before.turns != now.turns[: len(before.turns)]:
        parts.append("messages")
    return parts


def _changed_by(part: Part, before: Content, now: Content) -> Literal["request", "parameters", "template"]:
    if part in _changed_parts(before, now):
        return "request"
    return "parameters" if before.parameters != now.parameters else "template"


def _skips_cache(request: ChatRequest | CompletionRequest) -> bool:
    """Whether the engine reads the whole prompt again, for its logprobs."""
    return isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None
