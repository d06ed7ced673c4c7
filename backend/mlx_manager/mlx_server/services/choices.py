"""The choices of a request: the engine submission of each, and the events that its tokens become."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec

from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.sequences import Tokens
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.models.pool import LoadedModel
from mlx_manager.mlx_server.models.token_texts import TokenTexts
from mlx_manager.mlx_server.models.tokenization import make_decoder, make_filtering_decoder
from mlx_manager.mlx_server.parsers.detect import PLAIN
from mlx_manager.mlx_server.parsers.output import OutputParser
from mlx_manager.mlx_server.parsers.pieces import Piece, Text, Tool
from mlx_manager.mlx_server.services.choice_events import Delta, DeltaWriter
from mlx_manager.mlx_server.services.choice_text import ChoiceText, Output
from mlx_manager.mlx_server.services.constraints import resolve_thinking
from mlx_manager.mlx_server.services.limits import resolve_max_tokens, resolve_sampling, resolve_stop_tokens
from mlx_manager.mlx_server.services.logprobs import LogprobLedger, prompt_logprobs
from mlx_manager.mlx_server.services.prompts import Prompt
from mlx_manager.mlx_server.types import ChatRequest, ChoiceFinished, CompletionRequest

ChoiceEvent = Delta | ChoiceFinished


class ChoiceRun:
    """One choice while it is generated. `events` turns tokens into events, until `finished`."""

    def __init__(
        self, model: LoadedModel, request: ChatRequest | CompletionRequest, prompt: Prompt, index: int
    ) -> None:
        self.index = index
        self.finished = False
        self._echoes = _echoes(request)
        self._generates = request.max_tokens != 0
        self._prompt = prompt
        self._decode = _decoder(model, request)
        self._texts = TokenTexts(model.tokenizer) if request.logprobs is not None else None
        ledger = LogprobLedger(self._texts, len(prompt.echo) if self._echoes else 0) if self._texts else None
        detokenizer = StreamingDetokenizer(self._decode, _context(request, prompt), model.language.plain_texts)
        one_call = isinstance(request, ChatRequest) and not request.tool_use.parallel
        self._text = ChoiceText(detokenizer, _parser(model, request, prompt), request, ledger, one_call)
        self._write = DeltaWriter(index)
        self._logprob_sum = 0.0

    @property
    def completion_tokens(self) -> int:
        return self._text.completion_tokens

    @property
    def reasoning_tokens(self) -> int:
        return self._text.reasoning_tokens

    @property
    def broken_calls(self) -> int:
        return self._text.broken_calls

    @property
    def mean_logprob(self) -> float:
        return self._logprob_sum / max(1, self.completion_tokens)

    def events(self, tokens: Tokens) -> list[ChoiceEvent]:
        events: list[ChoiceEvent] = []
        if self._echoes:
            self._echoes = False
            events += self._write(self._echo(tokens))
        if self._generates:
            events += self._feed(tokens)
        reason = self._text.finish_reason if self._generates else "length"
        if reason is not None:
            self.finished = True
            events.append(ChoiceFinished(self.index, reason, self._text.matched_stop))
        return events

    def _feed(self, tokens: Tokens) -> list[Delta]:
        counted = self._text.completion_tokens
        output = self._text.feed(tokens)
        if tokens.scores:
            self._logprob_sum += sum(score.logprob for score in tokens.scores[: self.completion_tokens - counted])
        return self._write(output)

    def _echo(self, tokens: Tokens) -> Output:
        """The prompt, sent before the first tokens."""
        pieces: list[Piece] = [Text(self._prompt.echo)] if self._prompt.echo else []
        if self._texts is None:
            return Output(pieces)
        detokenizer = StreamingDetokenizer(self._decode)
        return Output(pieces, prompt_logprobs(self._texts, self._prompt.tokens, tokens.prompt_scores, detokenizer))


def plan_choices(
    model: LoadedModel, request: ChatRequest | CompletionRequest, prompts: list[Prompt], grammar: str | None
) -> list[tuple[ChoiceRun, Submit]]:
    """All choices with their submissions, grouped by prompt. The n-th choice of a prompt has the n-th seed.

    Raises InvalidRequest with the field in `param` for what this model cannot do.
    """
    sampling = resolve_sampling(model, request)
    stop_tokens = resolve_stop_tokens(model, request)
    if request.min_tokens > 0:
        sampling = replace(sampling, min_tokens=request.min_tokens, end_tokens=stop_tokens)
    planned: list[tuple[ChoiceRun, Submit]] = []
    for prompt in prompts:
        max_tokens = resolve_max_tokens(model, request, len(prompt.tokens))
        thinking = resolve_thinking(model, request, prompt, grammar is not None)
        for number in range(_choices_of_each_prompt(request)):
            submission = Submit(
                0,
                prompt.tokens,
                max_tokens,
                stop_tokens,
                replace(sampling, seed=(sampling.seed + number) % 2**64),
                grammar=grammar,
                thinking=thinking,
                logprobs=0 if request.logprobs is None and returns_best_of(request) else request.logprobs,
                prompt_logprobs=request.logprobs is not None and _echoes(request),
                keep_off_disk=request.keep_off_disk,
            )
            planned.append((ChoiceRun(model, request, prompt, len(planned)), submission))
    return planned


def returns_best_of(request: ChatRequest | CompletionRequest) -> bool:
    """Whether the request generates more choices than it returns."""
    return isinstance(request, CompletionRequest) and request.best_of > request.n


def best_of(
    request: ChatRequest | CompletionRequest, runs: list[ChoiceRun], events: list[ChoiceEvent]
) -> Iterator[ChoiceEvent]:
    """The events of each prompt's `n` likeliest choices by mean token logprob, the likeliest first."""
    by_choice = defaultdict(list)
    for event in events:
        by_choice[event.index].append(event)
    made = _choices_of_each_prompt(request)
    for first in range(0, len(runs), made):
        ranked = sorted(runs[first : first + made], key=lambda run: run.mean_logprob, reverse=True)
        for place, run in enumerate(ranked[: request.n]):
            index = first // made * request.n + place
            yield from (msgspec.structs.replace(event, index=index) for event in by_choice[run.index])


def _choices_of_each_prompt(request: ChatRequest | CompletionRequest) -> int:
    return request.best_of if isinstance(request, CompletionRequest) else request.n


def _echoes(request: ChatRequest | CompletionRequest) -> bool:
    return isinstance(request, CompletionRequest) and request.echo


def _decoder(model: LoadedModel, request: ChatRequest | CompletionRequest) -> Callable[[list[int]], str]:
    """Drops special tokens, except those that the output parser needs."""
    if isinstance(request, CompletionRequest) or not request.skip_special_tokens:
        return make_decoder(model.tokenizer, request.skip_special_tokens)
    special_tokens = model.language.special_tokens
    visible = model.output_format.visible_special_tokens(with_tools=bool(request.tool_use.tools))
    if visible.isdisjoint(special_tokens):
        return make_decoder(model.tokenizer)
    hidden = frozenset(token for name, token in special_tokens.items() if name not in visible)
    return make_filtering_decoder(model.tokenizer, hidden)


def _parser(model: LoadedModel, request: ChatRequest | CompletionRequest, prompt: Prompt) -> OutputParser:
    """A completion is plain text: it is not parsed."""
    if isinstance(request, CompletionRequest):
        return PLAIN.make_parser((), opened_reasoning=False)
    tools = [Tool(tool.name, tool.parameters, custom=tool.custom) for tool in request.tool_use.tools]
    return model.output_format.make_parser(tools, opened_reasoning=prompt.opens_reasoning)


def _context(request: ChatRequest | CompletionRequest, prompt: Prompt) -> list[int] | None:
    """A completion continues the text of its prompt, spaces included; a chat answer starts a new text."""
    goes_on = isinstance(request, CompletionRequest) or request.continue_final_message
    return prompt.tokens if goes_on else None
