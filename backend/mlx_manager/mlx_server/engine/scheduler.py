"""The engine's scheduler: `plan` makes the next step, the runner runs it, and `note` records its outcome.

Owns every decision: chunked prefill (`prompt_queue.py`, `pacing.py`), KV memory (`kv_memory.py`), stored prefixes
(`prefix_tree.py`), which sequences join and leave the batch and its groups (`groups.py`), and finish reasons.
Deterministic: the same messages, times and outcomes give the same plans. Knows no arrays and does not import MLX.
"""

from collections.abc import Collection
from dataclasses import replace

from mlx_manager.mlx_server.engine.disk_tier import DiskTier
from mlx_manager.mlx_server.engine.groups import Groups
from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.ledger import Ledger
from mlx_manager.mlx_server.engine.messages import (
    MAX_BATCH_ROWS,
    Admitted,
    RequestFailed,
    RequestFinished,
    Submit,
    UpMessage,
)
from mlx_manager.mlx_server.engine.pacing import Pace
from mlx_manager.mlx_server.engine.plan import (
    Chunk,
    Compiled,
    GroupEdit,
    Join,
    ModelFacts,
    Outcome,
    Plan,
    Scored,
    Segment,
)
from mlx_manager.mlx_server.engine.prefix_tree import PrefixTree
from mlx_manager.mlx_server.engine.prompt_queue import Prompt, PromptQueue, Selection, Sequence
from mlx_manager.mlx_server.engine.refusal import refusal
from mlx_manager.mlx_server.engine.shapes import Shapes, grown
from mlx_manager.mlx_server.types import FinishReason

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
        self._shapes = Shapes(facts.repeats_shapes)
        self._groups = Groups(facts)
        self.disk = DiskTier(self.prefixes, facts)
        self._queue = PromptQueue(self.prefixes, facts.prefills_together, self._shapes, self.disk)
        self._ledger = Ledger(self._groups, self._queue, self._shapes)
        self._pace = Pace(inter_token_seconds)
        self._sequences: dict[int, Sequence] = {}
        self._compiling: dict[int, Sequence] = {}
        self._pending: list[UpMessage] = []
        self._preempted: list[int] = []
        self._freed: list[int] = []
        self._begin: list[Submit] = []
        self._selection: Selection | None = None
        self._has_decoded = True
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
    def prefilling(self) -> int:
        """Sequences whose prompts are prefilled in part."""
        return len(self._queue.begun)

    @property
    def has_work(self) -> bool:
        """Whether the next plan would have any content."""
        return bool(self._sequences or self._pending or self._freed or self.prefixes.has_edits or self.disk.has_work)

    @property
    def charged_bytes(self) -> int:
        """Bytes of the caches of all sequences."""
        return sum(self._ledger.held(self.memory))

    def limit(self, kv_bytes: int, prefix_bytes: int) -> None:
        """Sets new limits: evicts stored prefixes now, and preempts sequences that do not fit at the next step."""
        self.memory = replace(self.memory, limit_bytes=kv_bytes)
        self.prefixes.limit_bytes = min(prefix_bytes, kv_bytes)
        self.prefixes.shrink(self.prefixes.limit_bytes)

    def submit(self, message: Submit, now: float) -> None:
        """Admits or rejects the sequence; the next step's messages say which."""
        self._now = now
        refused = refusal(message, self._facts.vocabulary_size, self.memory.largest_sequence_tokens)
        if refused is not None:
            self._pending.append(refused)
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
        groups = self._groups.take_edits()
        if chunk is not None or groups or self._preempted or self._freed or self._begin or self.prefixes.has_edits:
            return self._with_changes(groups, chunk)
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

    def _with_changes(self, groups: list[GroupEdit], chunk: Chunk | None) -> Plan:
        edits = self.prefixes.take_edits()
        plan = Plan(edits, self._preempted, self._freed, self._begin, groups, chunk, self._decodes)
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
            chunk_tokens = self._shapes.whole_queries(self._pace.chunk_tokens(bool(self.running)))
            selection = self._queue.choose(chunk_tokens, self._fits_memory)
            if selection is None or (len(selection.prompts) == 1 and self._first_tokens_come_next()):
                return None
            self._fit_prefixes(self._ledger.needed(self.memory, selection.prompts))
            if self.prefixes.version == version:
                return selection

    def _first_tokens_come_next(self) -> bool:
        """Within two decode steps. A long prompt waits for them; a burst of short ones joins."""
        return bool(self.running) and (bool(self._joined) or self._first_tokens_are_due)

    def _chunk_is_due(self) -> bool:
        return not self.running or (self._has_decoded and self._pace.chunk_is_due())

    def _chunk(self, selection: Selection) -> Chunk:
        rows, queries = self._shapes.prefill_rows(len(selection.prompts)), self._shapes.queries(selection.longest)
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
        tokens = self._slot_tokens(selection, rows)
        if selection.completes:
            others = self._ledger.prefilling(self.memory, selection.prompts)
            joins = [self._planned_join(prompt.sequence, others) for prompt in selection.prompts]
        self._groups.fit(self.memory, self._ledger.prefilling(self.memory), self.prefixes.nbytes)
        self.prefixes.room_bytes = self.memory.limit_bytes - self.memory.with_copies(
            self._ledger.held(self.memory, selection.prompts if joins else ())
        )
        return Chunk(segments, rows, queries, tokens, joins, scored)

    def _slot_tokens(self, selection: Selection, rows: int) -> int:
        """Tokens of the slots of a chunk, which has one position more than its prompts, for what is padding."""
        longest = max(selection.ends) + 1
        tokens = self._shapes.tokens(longest)
        caches = self._ledger.held(self.memory, selection.prompts)
        caches.append(self.memory.held(len(selection.prompts), rows, tokens))
        if not self.memory.fits(self.memory.with_copies(caches) + self.prefixes.nbytes):
            tokens = grown(longest)
        for prompt in selection.prompts:
            prompt.slot_tokens = tokens
        return tokens

    def _planned_join(self, sequence: Sequence, others: list[int]) -> Join:
        group = self._groups.join(sequence, self.memory, others)
        return Join(sequence.number, sequence.tokens, sequence.generated, sequence.needs_whole_nucleus, group)

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
        padded = self._shapes.prefill_rows(len(selection.prompts)) * self._shapes.queries(selection.longest)
        self._pace.prefilled(padded, outcome.seconds, while_decoding)
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
                messages.append(sequence.prefilled())
        return messages

    def _is_worth_storing(self, selection: Selection, prompt: Prompt, end: int) -> bool:
        if selection.alone:
            return selection.completes or end in prompt.boundaries
        return prompt.is_awaited or self.prefixes.needs_snapshots

    def _join(self, sequence: Sequence) -> None:
        self.running.append(sequence)
        self._joined.append(sequence)

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
            messages.append(outcome.step(surplus))
        messages += [RequestFinished(number, reason) for number, reason in finished.items()]
        messages += [RequestFailed(failure.sequence, failure.message) for failure in failed]
        return messages

    def _append_tokens(self, outcome: Outcome) -> tuple[dict[int, FinishReason], list[int]]:
        """Appends the tokens to their sequences. Returns finish reasons, and the indices of tokens after a finish."""
        finished: dict[int, FinishReason] = {}
        surplus: list[int] = []
        sequences = self._sequences
        for place, number in enumerate(outcome.sequences):
            if finished and number in finished:
                surplus.append(place)
                continue
            sequence, token = sequences[number], outcome.tokens[place]
            tokens = sequence.tokens
            tokens.append(token)
            if token in sequence.stop_tokens:
                finished[number] = "stop"
            elif len(tokens) >= sequence.max_total_tokens:
                finished[number] = "length"
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
        running = len(self.running)
        if not running and self._queue.begun in ([], prompts) and len(prompts) == 1:
            return True
        return running + len(prompts) <= self._max_rows and self.memory.fits(self._ledger.needed(self.memory, prompts))

    def _make_room(self) -> None:
        """Frees memory for one more token of every row: preempts the newest sequences, and evicts prefixes."""
        self._groups.measure()
        while len(self.running) + len(self._queue.begun) > 1 and not self.memory.fits(self._ledger.needed(self.memory)):
            begun = self._queue.begun
            if begun and (self.running or len(begun) > 1):
                self._preempted.append(begun[-1].sequence.number)
                self._queue.preempt(begun[-1])
            else:
                self._preempt(self.running[-1])
        others = self._ledger.prefilling(self.memory)
        self._groups.regroup(self.memory, others, self.prefixes.nbytes)
        self._groups.fit(self.memory, others, self.prefixes.nbytes)
        self._fit_prefixes(self._ledger.needed(self.memory))

    def _fit_prefixes(self, needed: int) -> None:
        """Shrinks the stored prefixes to the memory that caches leave free."""
        self.prefixes.room_bytes = self.memory.limit_bytes - max(
            needed, self.memory.with_copies(self._ledger.held(self.memory))
        )
        self.prefixes.shrink(self.prefixes.room_bytes)

    def _preempt(self, sequence: Sequence) -> None:
        self._stop_decoding(sequence)
        self._preempted.append(sequence.number)
        self._queue.requeue(sequence, self._now)

    def _stop_decoding(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence in self._joined:
            self._joined.remove(sequence)
        self._groups.leave(sequence)

    def _drop(self, sequences: list[Sequence], beyond: Collection[int] = ()) -> None:
        """Removes the sequences, and stores their caches as prefixes. Caches of `beyond` hold more than the tokens."""
        held = [(self._take_out(sequence), sequence.number) for sequence in sequences]
        self._fit_prefixes(self._ledger.needed(self.memory))
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
