"""Tokens of one choice to its text and logprobs, however they are cut into batches."""

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.engine.sequences import Score, Tokens
from mlx_manager.mlx_server.models.detokenizing import StreamingDetokenizer
from mlx_manager.mlx_server.models.token_texts import TokenTexts
from mlx_manager.mlx_server.models.tokenization import load_tokenizer, make_decoder
from mlx_manager.mlx_server.parsers.detect import HERMES, PLAIN
from mlx_manager.mlx_server.parsers.formats import OutputFormat
from mlx_manager.mlx_server.parsers.output import ReasoningMarkers
from mlx_manager.mlx_server.parsers.pieces import Reasoning, Text, Tool, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.protocols.completions import to_request
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.services.choice_text import ChoiceText, Output
from mlx_manager.mlx_server.services.logprobs import LogprobLedger
from mlx_manager.mlx_server.types import CompletionRequest, FinishReason, Logprobs

TOKENIZER = load_tokenizer(demo_model_path())
TEXT = st.text(st.sampled_from("abc ,😀時é\n"), max_size=30)
TOOLS = [Tool("f", {})]
THINKING = replace(HERMES, reasoning=ReasoningMarkers("<think>", "</think>"))
CUTS = st.lists(st.integers(1, 4), max_size=30)


def request(**fields: Any) -> CompletionRequest:
    return to_request(openai.CompletionRequest.model_validate({"model": "demo", "prompt": "x", **fields}))


def fed(
    asked: CompletionRequest,
    tokens: list[int],
    cuts: list[int],
    end: FinishReason = "length",
    output_format: OutputFormat = PLAIN,
    one_call: bool = False,
) -> tuple[list[Output], ChoiceText]:
    """The pieces that come of the tokens, cut into batches, the last of which ends the choice."""
    texts = TokenTexts(TOKENIZER)
    detokenizer = StreamingDetokenizer(make_decoder(TOKENIZER, asked.skip_special_tokens))
    ledger = LogprobLedger(texts) if asked.logprobs is not None else None
    parser = output_format.make_parser(TOOLS, opened_reasoning=False)
    choice = ChoiceText(detokenizer, parser, asked, ledger, one_call)
    pieces = []
    while choice.finish_reason is None:
        size = cuts.pop(0) if cuts else len(tokens)
        batch, tokens = tokens[:size], tokens[size:]
        scores = [Score(-float(token), [token], [-float(token)]) for token in batch]
        pieces.append(choice.feed(Tokens(batch, None if tokens else end, scores, [])))
    return pieces, choice


@dataclass
class Said:
    text: str
    logprobs: Logprobs
    reasoning: str


def joined(outputs: list[Output]) -> Said:
    pieces = [piece for output in outputs for piece in output.pieces]
    text = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    return Said(text, sum((output.logprobs for output in outputs), ()), reasoning)


@given(text=TEXT, cuts=CUTS)
def test_logprobs_spell_the_text_and_never_run_ahead_of_it(text: str, cuts: list[int]) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, _ = fed(request(logprobs=1), tokens, cuts)
    sent, spelt = "", b""
    for piece in pieces:
        sent += joined([piece]).text
        spelt += b"".join(token.bytes for token in piece.logprobs)
        assert sent.encode().startswith(spelt)
    assert (sent, spelt) == (text, text.encode())
    assert [-token.logprob for token in joined(pieces).logprobs] == tokens


@given(text=TEXT, cuts=CUTS, stop=st.text(st.sampled_from("abc ,😀"), min_size=1, max_size=3))
def test_batches_change_nothing_and_what_a_stop_cuts_has_no_logprobs(text: str, cuts: list[int], stop: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    asked = request(logprobs=1, stop=stop)
    pieces, choice = fed(asked, tokens, cuts)
    whole, _ = fed(asked, tokens, [])
    assert joined(pieces) == joined(whole)
    piece = joined(pieces)
    assert piece.text == text.split(stop)[0]
    assert piece.text.encode().startswith(b"".join(token.bytes for token in piece.logprobs))
    assert choice.matched_stop == (stop if stop in text else None)


@given(text=TEXT)
def test_offsets_are_where_the_tokens_text_begins(text: str) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False)
    pieces, _ = fed(request(logprobs=0), tokens, [1] * len(tokens))
    for token in joined(pieces).logprobs:
        if not token.token.startswith("bytes:"):
            assert text[token.offset :].startswith(token.token)


def test_asking_for_logprobs_changes_no_text() -> None:
    tokens = TOKENIZER.encode("a, b😀 c", add_special_tokens=False)
    silent, _ = fed(request(stop=" c"), tokens, [2, 1])
    asked, _ = fed(request(stop=" c", logprobs=2), tokens, [2, 1])
    assert [joined([piece]).text for piece in silent] == [joined([piece]).text for piece in asked]
    assert joined(silent).logprobs == ()


def test_an_end_token_is_counted_and_has_neither_text_nor_logprobs() -> None:
    tokens = TOKENIZER.encode("ab<|eot_id|>", add_special_tokens=False)
    pieces, choice = fed(request(logprobs=0), tokens, [], end="stop")
    assert joined(pieces).text == "ab"
    assert b"".join(token.bytes for token in joined(pieces).logprobs) == b"ab"
    assert (choice.completion_tokens, choice.finish_reason) == (len(tokens), "stop")


def test_what_stopped_the_choice_is_kept_where_it_is_asked_for() -> None:
    tokens = TOKENIZER.encode("one, two<|eot_id|>", add_special_tokens=False)
    keeping = replace(request(), include_stop=True)
    assert joined(fed(replace(keeping, stop=(", t",)), tokens, [])[0]).text == "one, t"
    assert joined(fed(keeping, tokens, [], end="stop")[0]).text == "one, two"
    spelling = replace(keeping, skip_special_tokens=False)
    assert joined(fed(spelling, tokens, [], end="stop")[0]).text == "one, two<|eot_id|>"


def test_no_stop_string_is_looked_for_in_the_first_tokens() -> None:
    tokens = TOKENIZER.encode(",,,,", add_special_tokens=False) * 3
    asked = request(stop=",", min_tokens=2)
    assert fed(asked, tokens, [])[1].completion_tokens == 3


ANSWERS = st.lists(
    st.sampled_from(
        ["a b", "😀c", " \n", '<tool_call>{"name": "f", "arguments": {"x": "a"}}</tool_call>', "<tool_call>{a"]
    ),
    max_size=4,
).map("".join)


@given(
    thought=st.sampled_from(["", "<think>a, b</think>", "<think>\na</think>\n\n", "<think>c"]), said=ANSWERS, cuts=CUTS
)
def test_logprobs_are_of_the_text_and_of_neither_reasoning_nor_calls(thought: str, said: str, cuts: list[int]) -> None:
    tokens = TOKENIZER.encode(thought + said, add_special_tokens=False)
    outputs, _ = fed(request(logprobs=0), tokens, list(cuts), output_format=THINKING)
    whole, _ = fed(request(logprobs=0), tokens, [], output_format=THINKING)
    assert joined(outputs) == joined(whole)
    spelt = b"".join(token.bytes for token in joined(whole).logprobs).decode(errors="ignore")
    left = iter(joined(whole).text)
    assert all(character in left for character in spelt)  # in this order
    if not thought and "<tool_call>" not in said:
        assert spelt == said


def test_stop_strings_are_for_the_text_and_neither_for_reasoning_nor_for_calls() -> None:
    said = '<think>a b</think>c <tool_call>{"name": "f", "arguments": {"x": "b"}}</tool_call> then b and more'
    tokens = TOKENIZER.encode(said, add_special_tokens=False)
    outputs, choice = fed(request(stop="b"), tokens, [], output_format=THINKING)
    assert (joined(outputs).reasoning, joined(outputs).text) == ("a b", "cthen ")
    assert (choice.matched_stop, choice.finish_reason) == ("b", "tool_calls")


def test_a_choice_of_one_call_ends_behind_it_and_counts_no_more() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    tokens = TOKENIZER.encode(call * 2, add_special_tokens=False)
    outputs, choice = fed(request(), tokens, [], output_format=THINKING, one_call=True)
    kinds = [type(piece) for output in outputs for piece in output.pieces]
    assert (kinds.count(ToolCallStart), kinds.count(ToolCallEnd)) == (1, 1)
    assert choice.finish_reason == "tool_calls"
    assert choice.completion_tokens <= len(tokens) // 2


@given(cuts=CUTS)
def test_reasoning_tokens_are_counted_with_their_markers(cuts: list[int]) -> None:
    thought = TOKENIZER.encode("<think>a, b, c</think>", add_special_tokens=False)
    answer = TOKENIZER.encode("\n\na, b", add_special_tokens=False)
    _, choice = fed(request(), thought + answer, cuts, output_format=THINKING)
    assert (choice.reasoning_tokens, choice.completion_tokens) == (len(thought), len(thought + answer))


def test_a_call_that_is_cut_off_is_no_call_to_act_on() -> None:
    tokens = TOKENIZER.encode('a <tool_call>{"name": "f", "arguments": {"x"', add_special_tokens=False)
    outputs, choice = fed(request(), tokens, [], output_format=THINKING)
    assert joined(outputs).text == 'a <tool_call>{"name": "f", "arguments": {"x"'
    assert (choice.finish_reason, choice.broken_calls) == ("length", 1)
