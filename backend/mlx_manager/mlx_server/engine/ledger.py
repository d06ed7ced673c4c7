"""Adds up the memory of all KV caches: of the groups of the batch, and of prompts in prefill. Knows no arrays."""

from collections.abc import Collection

from mlx_manager.mlx_server.engine.groups import Groups
from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.prompt_queue import Prompt, PromptQueue
from mlx_manager.mlx_server.engine.shapes import Shapes, grown


class Ledger:
    def __init__(self, groups: Groups, queue: PromptQueue, shapes: Shapes) -> None:
        self._groups = groups
        self._queue = queue
        self._shapes = shapes

    def held(self, memory: KvMemory, but: Collection[Prompt] = ()) -> list[int]:
        """Bytes of each cache as it is: the slots of the groups, and the prompts in prefill, except some."""
        return [*self._groups.held(memory), *self.prefilling(memory, but)]

    def needed(self, memory: KvMemory, prompts: Collection[Prompt] = ()) -> int:
        """Bytes of all caches at the next step, with those of `prompts` in their chunk and after they have joined."""
        others = self.prefilling(memory, prompts)
        needed = memory.with_copies([*self._groups.needed(memory), *others, *self._together(memory, prompts)])
        if not prompts:
            return needed
        joined = self._groups.needed(memory, [prompt.length for prompt in prompts], others)
        return max(needed, memory.with_copies([*joined, *others]))

    def prefilling(self, memory: KvMemory, but: Collection[Prompt] = ()) -> list[int]:
        """Bytes of each prompt in prefill."""
        return [size for prompt in self._queue.begun if prompt not in but for size in self._together(memory, [prompt])]

    def _together(self, memory: KvMemory, prompts: Collection[Prompt]) -> list[int]:
        """Bytes of one cache for the prompts."""
        if not prompts:
            return []
        longest = max(max(grown(prompt.length), prompt.slot_tokens) for prompt in prompts)
        return [memory.held(len(prompts), self._shapes.prefill_rows(len(prompts)), longest)]
