"""The engine's scheduler: `plan` makes the next step, the runner runs it, and `note` records its outcome.

Owns every decision: chunked prefill (`prompt_queue.py`, `pacing.py`), KV memory (`kv_memory.py`), stored prefixes
(`prefix_tree.py`), which sequences join and leave the batch, and finish reasons. Deterministic: the same messages,
times and outcomes give the same plans. Knows no arrays and does not import MLX.
"""

from collections.abc import Collection
from dataclasses import replace

from mlx_manager.mlx_server.engine.disk_tier import DiskTier
from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.messages import (
    MAX_BATCH_ROWS,
    Admitted,
    Prefilled,
    RequestFailed,
    RequestFinished,
    Step,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.pacing import Pace
from mlx_manager.mlx_server.engine.plan import (
    Chunk,
    Compiled,
    Join,
    ModelFacts,
    Outcome,
    Plan,
    Scored,
    Segment,
)
from mlx_manager.mlx_server.engine.prefix_tree import PrefixTree
from mlx_manager.mlx_server.engine.prompt_queue import Prompt, PromptQueue, Selection, Sequence
from mlx_manager.mlx_server.types import FinishReason, Thinking

NOTHING = Plan()
DECODE = Plan(decode=True)
WAIT = Plan(wait=True)


class Scheduler:
    """Call `submit` and `cancel` at any time between a `note` and the next `plan`."""

    def __init__(self, facts: ModelFacts, kv_bytes: int, prefix_bytes: int, inter_token_seconds: float) -> None:
        self.memory = KvMemory.of(facts, kv_bytes)
        self.prefixes = PrefixTree(facts, min(prefix_bytes, kv_bytes))
        self.running: list[Sequence] = []
        """Sequences that are decoded, in the order in which they joined."""
        self.peak_sequences = 0
        """The most concurrent sequences in the current busy period, or in the last one."""
        self._facts = facts
        self._max_rows = MAX_BATCH_ROWS if facts.decodes_together else 1
        self.disk = DiskTier(self.prefixes, facts)
        self._queue = PromptQueue(self.prefixes, facts.prefills_together, self.disk)
        self._pace = Pace(inter_token_seconds)
        self._sequences: dict[int, Sequence] = {}
        self._compiling: dict[int, Sequence] = {}
        self._pending: list[UpMessage] = []
        self._preempted: list[int] = []
        self._freed: list[int] = []
        self._begin: list[Submit] = []
        self._selection: Selection | None = None
        self._has_decoded = True
        self._longest = 0
        """Tokens of the longest running sequence."""
        self._joined: list[Sequence] = []
        """Running sequences without a decode step so far: their caches lack their last tokens."""
        self._first_tokens_are_due = False
        """Whether the next step returns first tokens: each step returns the tokens of the step before it."""
        self._decodes = False
        self._now = 0.0

    def __len__(self) -> int:
        """Sequences submitted and not finished."""
        return len(self._sequences)

    @property
    def has_work(self) -> bool:
        """Whether the next plan would have any content."""
        return bool(self._sequences or self._pending or self._freed or self.prefixes.has_edits or self.disk.has_work)

    def limit(self, kv_bytes: int, prefix_bytes: int) -> None:
        """Sets new limits: evicts stored prefixes now, and preempts sequences that do not fit at the next step."""
        self.memory = replace(self.memory, limit_bytes=kv_bytes)
        self.prefixes.limit_bytes = min(prefix_bytes, kv_bytes)
        self.prefixes.shrink(self.prefixes.limit_bytes)

    def submit(self, message: Submit, now: float) -> None:
        """Admits or rejects the sequence; the next step's messages say which."""
        self._now = now
        refusal = self._refusal(message)
        if refusal is not None:
            self._pending.append(refusal)
            return
        sequence = Sequence(
            number=message.sequence,
            tokens=list(message.prompt_tokens),
            prompt_tokens=len(message.prompt_tokens),
            max_total_tokens=len(message.prompt_tokens) + message.max_tokens,
            stop_tokens=frozenset(message.stop_tokens),
            scores_prompt=message.prompt_logprobs,
        )
        self.peak_sequences = max(self.peak_sequences, len(self._sequences) + 1) if self._sequences else 1
        self._sequences[sequence.number] = sequence
        self._begin.append(message)
        if message.keep_off_disk:
            self.prefixes.kept_off_disk.add(sequence.number)
        if message.grammar is not None:
            self._compiling[sequence.number] = sequence
        else:
            self._pending.append(self._admit(sequence))

    def cancel(self, number: int) -> None:
        sequence = self._sequences.get(number)
        if sequence is not None:
            self._drop([sequence])

    def close(self) -> None:
        """Cancels all sequences; the next steps write stored prefixes to disk, if there is one."""
        self._drop(list(self._sequences.values()))
        self.disk.close()

    def plan(self, now: float) -> Plan:
        """Plans one decode step of all running sequences or, when one is due, one chunk of the waiting prompts.

        While messages are pending, the plan has neither, so the worker sends them first.
        """
        self._now = now
        self._decodes = False
        self._make_room()
        self.disk.plan(now, bool(self._sequences))
        if not self._pending:
            self._selection = self._select_prompts()
            self._has_decoded = self._selection is None
            self._decodes = self._selection is None and bool(self.running)
        chunk = self._chunk(self._selection) if self._selection is not None else None
        if chunk is not None or self._preempted or self._freed or self._begin or self.prefixes.has_edits:
            return self._with_changes(chunk)
        if self._decodes:
            return DECODE
        return WAIT if (self._compiling or self.disk.has_work) and not self._pending else NOTHING

    def note(self, outcome: Outcome) -> list[UpMessage]:
        """Records the outcome of the last plan and returns the messages for the API."""
        messages, self._pending = self._pending, []
        for size in outcome.node_sizes:
            self.prefixes.correct(size)
        for event in outcome.disk:
            self.disk.note(event)
        for compiled in outcome.compiled:
            messages.append(self._note_compiled(compiled))
        if self._selection is not None:
            messages += self._note_chunk(self._selection, outcome)
            self._selection = None
        elif self._decodes:
            messages += self._note_tokens(outcome)
        return messages

    def _with_changes(self, chunk: Chunk | None) -> Plan:
        plan = Plan(self.prefixes.take_edits(), self._preempted, self._freed, self._begin, chunk, self._decodes)
        self._preempted, self._freed, self._begin = [], [], []
        return plan

    def _admit(self, sequence: Sequence) -> Admitted:
        prompt = self._queue.add(sequence, self._now)
        if not prompt.is_scored:
            prompt.awaited_block = self.disk.request(prompt.compared, self._pace.seconds_per_token)
        return Admitted(sequence.number)

    def _select_prompts(self) -> Selection | None:
        """The next chunk, if one is due and fits into memory; otherwise the step decodes."""
        if not self._queue or not self._chunk_is_due() or not self._queue.may_choose(self._fits_memory):
            return None
        while True:
            version = self.prefixes.version
            selection = self._queue.choose(self._pace.chunk_tokens(bool(self.running)), self._fits_memory)
            if selection is None or (len(selection.prompts) == 1 and self._first_tokens_come_next()):
                return None
            self._fit_prefixes(*self._rows_with(selection.prompts))
            if self.prefixes.version == version:
                return selection

    def _first_tokens_come_next(self) -> bool:
        """Within two decode steps. A long prompt waits for them; a burst of short ones joins."""
        return bool(self.running) and (bool(self._joined) or self._first_tokens_are_due)

    def _chunk_is_due(self) -> bool:
        return not self.running or (self._has_decoded and self._pace.chunk_is_due())

    def _chunk(self, selection: Selection) -> Chunk:
        segments, joins, scored = [], [], None
        for prompt, end in zip(selection.prompts, selection.ends, strict=True):
            sequence, prefix = prompt.sequence, None
            if not prompt.has_begun:
                prefix = prompt.match.prefix if prompt.match.length else None
                self._queue.begin(prompt, self._now)
            start = prompt.done
            segments.append(Segment(sequence.number, sequence.tokens[start:end], prefix))
            if prompt.is_scored and start < end:
                scored = Scored(start, sequence.tokens[start + 1 : end + 1])
            if selection.completes:
                joins.append(Join(sequence.number, sequence.tokens, sequence.generated, sequence.needs_whole_nucleus))
        return Chunk(segments, joins, scored)

    def _note_compiled(self, compiled: Compiled) -> UpMessage:
        sequence = self._compiling.pop(compiled.sequence)
        if compiled.failure is None:
            return self._admit(sequence)
        self._drop([sequence])
        return RequestFailed(sequence.number, compiled.failure, invalid=True)

    def _note_chunk(self, selection: Selection, outcome: Outcome) -> list[UpMessage]:
        while_decoding = bool(self.running)
        if while_decoding:
            self._pace.decoded(outcome.drain_seconds)
        self._pace.prefilled(selection.padded_tokens, outcome.seconds, while_decoding)
        self._queue.advance(selection)
        messages: list[UpMessage] = []
        if outcome.prompt_logprobs is not None:
            messages.append(outcome.prompt_logprobs)
        for prompt, end in zip(selection.prompts, selection.ends, strict=True):
            sequence = prompt.sequence
            if self._is_worth_storing(selection, prompt, end):
                self.prefixes.store(prompt.compared[:end], sequence.number)
            if not selection.completes:
                continue
            sequence.scores_prompt = False  # prompt logprobs are sent once, even if the sequence is preempted later
            self._join(sequence)
            if not sequence.generated:
                messages.append(Prefilled(sequence.number, sequence.cached_tokens or 0, sequence.queue_seconds))
        return messages

    def _is_worth_storing(self, selection: Selection, prompt: Prompt, end: int) -> bool:
        if selection.alone:
            return selection.completes or end in prompt.boundaries
        return prompt.is_awaited or self.prefixes.needs_snapshots

    def _join(self, sequence: Sequence) -> None:
        self.running.append(sequence)
        self._joined.append(sequence)
        self._longest = max(self._longest, len(sequence.tokens))

    def _note_tokens(self, outcome: Outcome) -> list[UpMessage]:
        self._pace.decoded(outcome.seconds)
        self._first_tokens_are_due = bool(self._joined)
        self._joined = []
        finished, surplus = self._append_tokens(outcome)
        self._redraw(outcome.invalid_draws)
        failed = [failure for failure in outcome.failed if failure.sequence not in finished]
        if finished or failed:
            beyond = {outcome.sequences[place] for place in surplus}
            self._drop([self._sequences[n] for n in (*finished, *(f.sequence for f in failed))], beyond)
        messages: list[UpMessage] = []
        if outcome.sequences:
            messages.append(_step(outcome, surplus))
        messages += [RequestFinished(number, reason) for number, reason in finished.items()]
        messages += [RequestFailed(failure.sequence, failure.message) for failure in failed]
        return messages

    def _append_tokens(self, outcome: Outcome) -> tuple[dict[int, FinishReason], list[int]]:
        """Appends the tokens to their sequences. Returns finish reasons, and the indices of tokens after a finish."""
        finished: dict[int, FinishReason] = {}
        surplus: list[int] = []
        sequences, longest = self._sequences, self._longest
        for place, number in enumerate(outcome.sequences):
            if finished and number in finished:
                surplus.append(place)
                continue
            sequence, token = sequences[number], outcome.tokens[place]
            tokens = sequence.tokens
            tokens.append(token)
            length = len(tokens)
            if length > longest:
                longest = length
            if token in sequence.stop_tokens:
                finished[number] = "stop"
            elif length >= sequence.max_total_tokens:
                finished[number] = "length"
        self._longest = longest
        cut = {outcome.sequences[place] for place in surplus}
        finished.update(dict.fromkeys((number for number in outcome.ended if number not in cut), "stop"))
        return finished, surplus

    def _redraw(self, invalid_draws: list[int]) -> None:
        """Preempts sequences whose quick top-p draw was invalid. They resume with draws from the sorted vocabulary.

        The logits of the invalid draw are gone: the next step was launched before the draw could be read.
        """
        for number in invalid_draws:
            sequence = self._sequences[number]
            sequence.needs_whole_nucleus = True
            if not self.prefixes.needs_snapshots:
                self.prefixes.store(sequence.tokens, number)
            self._preempt(sequence)

    def _fits_memory(self, prompts: list[Prompt]) -> bool:
        """Whether the caches of the prompts fit. A single cache always fits: `submit` checks it."""
        rows, longest = self._rows_with(prompts)
        if rows == 1:
            return True
        return len(self.running) + len(prompts) <= self._max_rows and self.memory.fits(rows, longest)

    def _rows_with(self, prompts: list[Prompt]) -> tuple[int, int]:
        """The number of caches with those of `prompts`, and the length of the longest at the next step, in tokens."""
        rows, longest = len(self.running), self._longest + self._facts.tokens_per_step if self.running else 0
        if not prompts and not self._queue.begun:
            return rows, longest
        waiting = [*prompts, *(prompt for prompt in self._queue.begun if prompt not in prompts)]
        return rows + len(waiting), max(longest, *(prompt.length for prompt in waiting))

    def _make_room(self) -> None:
        """Frees memory for one more token of every row: preempts the newest sequences, and evicts prefixes."""
        rows, longest = self._rows_with([])
        while rows > 1 and not self.memory.fits(rows, longest):
            begun = self._queue.begun
            if begun and (self.running or len(begun) > 1):
                self._preempted.append(begun[-1].sequence.number)
                self._queue.preempt(begun[-1])
            else:
                self._preempt(self.running[-1])
            rows, longest = self._rows_with([])
        self._fit_prefixes(rows, longest)

    def _fit_prefixes(self, rows: int, longest: int) -> None:
        """Shrinks the stored prefixes to the memory that `rows` rows leave free."""
        self.prefixes.room_bytes = self.memory.limit_bytes - self.memory.needed(rows, longest)
        self.prefixes.shrink(self.prefixes.room_bytes)

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_decoding(sequence)
        self._preempted.append(sequence.number)
        self._queue.requeue(sequence, self._now)

    def _stop_decoding(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence in self._joined:
            self._joined.remove(sequence)
        self._longest = max((len(other.tokens) for other in self.running), default=0)

    def _drop(self, sequences: list[Sequence], beyond: Collection[int] = ()) -> None:
        """Removes the sequences, and stores their caches as prefixes. Caches of `beyond` hold more than the tokens."""
        held = [(self._take_out(sequence), sequence.number) for sequence in sequences]
        self._fit_prefixes(*self._rows_with([]))
        for tokens, number in held:
            del self._sequences[number]
            if number not in beyond or not self.prefixes.needs_snapshots:
                self.prefixes.store(tokens, number)
            self.prefixes.kept_off_disk.discard(number)
            not_sent = [message for message in self._begin if message.sequence == number]
            if not_sent:
                self._begin.remove(not_sent[-1])
            else:
                self._freed.append(number)

    def _take_out(self, sequence: Sequence) -> list[int]:
        """The tokens that the sequence's cache holds."""
        if sequence in self.running:
            held = sequence.tokens[:-1] if sequence in self._joined else sequence.tokens
            self._stop_decoding(sequence)
            return held
        self._compiling.pop(sequence.number, None)
        prompt = self._queue.remove(sequence)
        return sequence.tokens[: prompt.done] if prompt is not None else []

    def _refusal(self, message: Submit) -> RequestFailed | None:
        fault = self._fault(message)
        if fault is not None:
            return RequestFailed(message.sequence, fault, invalid=True)
        if message.thinking is not None and not self._knows(message.thinking):
            return RequestFailed(
                message.sequence,
                f"the model's thinking tokens are outside its vocabulary of {self._facts.vocabulary_size} tokens",
            )
        return None

    def _fault(self, message: Submit) -> str | None:
        """Why the sequence must not reach MLX, which does not check token ids."""
        prompt, largest, vocabulary = (
            message.prompt_tokens,
            self.memory.largest_sequence_tokens,
            self._facts.vocabulary_size,
        )
        if not prompt:
            return "The prompt has no tokens. Send at least one."
        if max(prompt) >= vocabulary or min(prompt) < 0:
            wrong = min(prompt) if min(prompt) < 0 else max(prompt)
            return f"The prompt has token id {wrong}. Send ids from 0 to {vocabulary - 1}, the model's vocabulary."
        if message.max_tokens < 1:
            return f"max_tokens is {message.max_tokens}. Send 1 or more."
        if len(prompt) + message.max_tokens > largest:
            return (
                f"The request needs {len(prompt) + message.max_tokens} tokens (prompt {len(prompt)} + completion "
                f"{message.max_tokens}), but only {largest} fit in memory now. Reduce max_tokens or the prompt, or "
                "raise MLX_SERVER_MAX_MEMORY_GB."
            )
        return None

    def _knows(self, thinking: Thinking) -> bool:
        marks = (thinking.open_token, thinking.again_token, *thinking.close_tokens)
        tokens = [token for token in marks if token is not None]
        return bool(thinking.close_tokens) and all(0 <= token < self._facts.vocabulary_size for token in tokens)


def _step(outcome: Outcome, surplus: list[int]) -> Step:
    """The outcome's tokens as a message, without those at the indices in `surplus`."""
    if not surplus:
        return Step(outcome.sequences, outcome.tokens, outcome.logprobs)
    kept = [place for place in range(len(outcome.sequences)) if place not in surplus]
    return Step(
        [outcome.sequences[place] for place in kept],
        [outcome.tokens[place] for place in kept],
        outcome.logprobs.at(kept) if outcome.logprobs is not None else None,
    )
