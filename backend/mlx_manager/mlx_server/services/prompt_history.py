"""Remembers what the prompts of past answers consisted of, to say what a later prompt has changed.

Keeps hashes and no text. Bounded: the oldest prompts are forgotten first. Runs on the event loop.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, islice

import msgspec

from mlx_manager.mlx_server.services.turns import leading_systems
from mlx_manager.mlx_server.types import ChatRequest, CompletionRequest, ToolDefinition

MAX_TURNS = 2**16
"""Turns of all remembered prompts together. Each takes 8 bytes, and up to 200 where no later prompt repeats it."""
TURNS_OF_A_PROMPT = 16
"""What a prompt counts beside its turns."""
MAX_CANDIDATES = 4
BLOCK_CHARACTERS = 64
BLOCK_TOKENS = 16
MAX_BLOCKS = 256
"""The blocks at the beginning of a completion's prompt, which stand for the turns that it lacks."""


@dataclass(frozen=True, slots=True)
class Content:
    """A prompt's parts as hashes, which are valid in this process only. The parts of a completion are all in `turns`.

    `parameters` are the template's arguments other than messages and tools.
    """

    system: int
    tools: int
    parameters: int
    turns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """The model that read a prompt: its id, its files, its adapter, and when it was loaded (Unix seconds)."""

    model_id: str
    files: str
    adapter: str
    loaded_at: float


@dataclass(frozen=True, slots=True)
class PastPrompt:
    content: Content
    served: Served
    tokens: int


def contents_of(request: ChatRequest | CompletionRequest) -> list[Content]:
    """One for each prompt. Linear in the text, at about a gigabyte a second."""
    if isinstance(request, CompletionRequest):
        return [Content(0, 0, 0, _blocks(prompt)) for prompt in request.prompts]
    first = leading_systems(request.turns)
    return [
        Content(
            hash(request.turns[:first]),
            hash(tuple(map(_tool, request.tool_use.tools))),
            _hash(request.template_kwargs),
            tuple(map(hash, request.turns[first:])),
        )
    ]


def _tool(tool: ToolDefinition) -> int:
    return hash((tool.name, tool.description, _hash(tool.parameters), tool.custom))


def _hash(value: object) -> int:
    """Of a JSON value. 0 for one that JSON cannot hold: a lone surrogate, or a thousand levels."""
    try:
        return hash(msgspec.json.encode(value))
    except (UnicodeEncodeError, RecursionError):
        return 0


def _blocks(prompt: str | tuple[int, ...]) -> tuple[int, ...]:
    """A hash at the end of each whole block, of all text before it: two prompts share as many as they begin alike."""
    size = BLOCK_CHARACTERS if isinstance(prompt, str) else BLOCK_TOKENS
    ends = range(size, min(len(prompt), size * MAX_BLOCKS) + 1, size)
    return tuple(
        accumulate((hash(prompt[end - size : end]) for end in ends), lambda before, block: hash((before, block)))
    )


_Key = tuple[str | None, str]


@dataclass(slots=True)
class PromptHistory:
    """Past prompts by API key and id of the answer. A key's requests see its own prompts only."""

    max_turns: int = MAX_TURNS
    _prompts: OrderedDict[_Key, PastPrompt] = field(default_factory=OrderedDict)
    _latest: dict[tuple[str | None, int], _Key] = field(default_factory=dict)
    """The latest prompt with a turn."""
    _turns: int = 0

    def remember(self, owner: str | None, answer_id: str, prompt: PastPrompt) -> None:
        key = owner, answer_id
        self._prompts[key] = prompt
        self._turns += len(prompt.content.turns) + TURNS_OF_A_PROMPT
        self._latest.update(dict.fromkeys(((owner, turn) for turn in prompt.content.turns), key))
        while self._turns > self.max_turns:
            self._forget_oldest()

    def find(self, owner: str | None, answer_id: str) -> PastPrompt | None:
        return self._prompts.get((owner, answer_id))

    def nearest(self, owner: str | None, content: Content) -> PastPrompt | None:
        """The latest prompt of the same conversation: at least half of its turns come again."""
        turns = set(content.turns)
        known = (self._latest.get((owner, turn)) for turn in reversed(content.turns))
        candidates = islice(dict.fromkeys(key for key in known if key is not None), MAX_CANDIDATES)
        prompts = (self._prompts[key] for key in candidates)
        nearest = max(prompts, key=lambda prompt: _shared(prompt.content.turns, turns), default=None)
        if nearest is None or 2 * _shared(nearest.content.turns, turns) < len(nearest.content.turns):
            return None
        return nearest

    def _forget_oldest(self) -> None:
        key, prompt = self._prompts.popitem(last=False)
        self._turns -= len(prompt.content.turns) + TURNS_OF_A_PROMPT
        for turn in prompt.content.turns:
            if self._latest.get((key[0], turn)) == key:
                del self._latest[key[0], turn]


def _shared(turns: Iterable[int], others: set[int]) -> int:
    return len(others.intersection(turns))
