"""Constrained answers, from the engine core stepped by hand on the demo model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import mlx.nn as nn
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.grammar import CompiledGrammar, Constraint, GrammarCompiler, Masks
from mlx_manager.mlx_server.engine.messages import Admitted, RequestFailed, RequestFinished, Step, Submit
from mlx_manager.mlx_server.grammars.sources import translate
from mlx_manager.mlx_server.grammars.verdict import Question
from mlx_manager.mlx_server.types import GrammarKind, SamplingParams, Thinking
from tests.mlx_server.engine.json_schemas import SCHEMAS, Schema, schemas

TOKENIZER_FILE = demo_model_path() / "tokenizer.json"
TOKENIZER = Tokenizer.from_file(str(TOKENIZER_FILE))
VOCABULARY = TOKENIZER.get_vocab_size()


def token_id(text: str) -> int:
    (token,) = TOKENIZER.encode(text, add_special_tokens=False).ids
    return int(token)


END_OF_TURN, END_OF_TEXT, END_OF_MESSAGE = map(token_id, ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"))
THINK, END_OF_THOUGHT = map(token_id, ("<think>", "</think>"))
STOP_TOKENS = [END_OF_TURN, END_OF_TEXT]
PROMPT = TOKENIZER.encode(
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nGive me JSON with name Ann and age 3<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    add_special_tokens=False,
).ids


def to_llguidance(kind: GrammarKind, source: str) -> str:
    return translate(Question(kind, source)).text


OBJECT = to_llguidance("json_object", "")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load(demo_model_path())


@pytest.fixture(scope="module")
def core(model: nn.Module) -> EngineCore:
    return EngineCore(model, tokenizer_file=TOKENIZER_FILE)


class Answers:
    """What became of the sequences that were submitted to a core, run to its end."""

    def __init__(self, core: EngineCore) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.reasons: dict[int, str] = {}
        self.failures: dict[int, RequestFailed] = {}
        self.admitted: list[int] = []
        for event in _events(core):
            match event:
                case Step():
                    for sequence, token in zip(event.sequences, event.tokens, strict=True):
                        self.tokens.setdefault(sequence, []).append(token)
                case RequestFinished(sequence, reason):
                    self.reasons[sequence] = reason
                case RequestFailed(sequence):
                    self.failures[sequence] = event
                case Admitted(sequence):
                    self.admitted.append(sequence)

    def text(self, sequence: int) -> str:
        tokens = self.tokens[sequence]
        return decode(tokens[:-1] if self.reasons.get(sequence) == "stop" else tokens)


def _events(core: EngineCore) -> Iterator[object]:
    while len(core):
        yield from core.step()
    yield from core.step()


def decode(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens, skip_special_tokens=False))


def submission(
    sequence: int,
    grammar: str | None,
    *,
    max_tokens: int = 120,
    sampling: SamplingParams | None = None,
    stop_tokens: list[int] = STOP_TOKENS,
    thinking: Thinking | None = None,
) -> Submit:
    return Submit(
        sequence, PROMPT, max_tokens, stop_tokens, sampling or SamplingParams(seed=sequence), grammar, thinking
    )


def answer(core: EngineCore, *messages: Submit) -> Answers:
    for message in messages:
        core.submit(message)
    return Answers(core)


def schema_grammar(schema: Schema) -> str:
    return to_llguidance("json_schema", json.dumps(schema))


def ended_answers(answers: Answers) -> list[Any]:
    assert answers.failures == {}
    return [json.loads(answers.text(sequence)) for sequence, reason in answers.reasons.items() if reason == "stop"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_answer_that_ends_validates_against_its_schema(core: EngineCore, name: str) -> None:
    grammar = schema_grammar(SCHEMAS[name])
    ended = ended_answers(answer(core, *(submission(seed, grammar) for seed in range(4))))
    assert ended != []
    for instance in ended:
        jsonschema.validate(instance, SCHEMAS[name])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(schema=schemas(), seed=st.integers(0, 2**64 - 1))
def test_answer_to_any_schema_validates_when_it_ends(core: EngineCore, schema: Schema, seed: int) -> None:
    grammar = schema_grammar(schema)
    for instance in ended_answers(answer(core, submission(0, grammar, sampling=SamplingParams(seed=seed)))):
        jsonschema.validate(instance, schema)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(seed=1, temperature=0),
        SamplingParams(seed=2, top_k=3),
        SamplingParams(seed=3, top_p=0.5),
        SamplingParams(seed=4, min_p=0.2),
        SamplingParams(seed=5, temperature=2.0, top_k=40, top_p=0.9),
        SamplingParams(seed=6, repetition_penalty=1.9, frequency_penalty=1.5, presence_penalty=2.0),
        SamplingParams(seed=7, logit_bias={90: 100.0, END_OF_TURN: 100.0}),
        SamplingParams(seed=8, temperature=0, logit_bias=dict.fromkeys(range(0, 2000, 2), -100.0)),
    ],
)
def test_whatever_the_sampling_only_what_the_grammar_allows_is_drawn(
    core: EngineCore, sampling: SamplingParams
) -> None:
    schema = SCHEMAS["object"]
    (instance,) = ended_answers(answer(core, submission(0, schema_grammar(schema), sampling=sampling)))
    jsonschema.validate(instance, schema)


def test_json_object_is_an_object_whatever_it_holds(core: EngineCore) -> None:
    ended = ended_answers(answer(core, *(submission(seed, OBJECT) for seed in range(8))))
    assert ended != []
    assert all(isinstance(instance, dict) for instance in ended)


@pytest.mark.parametrize(
    "regex", [r"\d{3}-[a-z]{2,4}", r"^(yes|no)!$", "a/b\\/c", "two\nlines", r"[^x]{3}\.", r"(?i)abc", r"\p{Lu}\w{0,3}"]
)
def test_regex_matches_the_whole_answer(core: EngineCore, regex: str) -> None:
    answers = answer(core, *(submission(seed, to_llguidance("regex", regex)) for seed in range(4)))
    assert set(answers.reasons.values()) == {"stop"}
    for seed in range(4):
        assert re.fullmatch(regex.replace(r"\p{Lu}", r"[^\W\d_a-z]"), answers.text(seed))


def test_choice_is_one_of_the_strings_to_the_letter(core: EngineCore) -> None:
    choices = ["yes", "no", 'a "quoted" \\ word', "line\nbreak\t", "größer 😀", "<|eot_id|>", "/[a-z]/"]
    grammar = to_llguidance("choice", json.dumps(choices))
    answers = answer(
        core, *(submission(seed, grammar, sampling=SamplingParams(seed=seed, temperature=2.0)) for seed in range(16))
    )
    texts = {answers.text(seed) for seed in range(16)}
    assert texts <= set(choices)
    assert len(texts) > 1


@pytest.mark.parametrize(
    "choice",
    ['a "quoted" \\ word', "line\nbreak\t\r\x7f", "größer 😀", "<|eot_id|>", "a<think>b", "/[a-z]/", "%json {}", "#"],
)
def test_a_single_choice_is_the_answer(core: EngineCore, choice: str) -> None:
    answers = answer(core, submission(0, to_llguidance("choice", json.dumps([choice]))))
    assert answers.text(0) == choice


def test_lark_grammar_with_a_schema_and_a_special_token_inside(core: EngineCore) -> None:
    lark = 'start: "call " NAME " " arguments <|eom_id|>\nNAME: /[a-z]{3}/\narguments: %json {"enum": [10, 15, 19]}'
    grammar = to_llguidance("lark", lark)
    answers = answer(core, submission(0, grammar, stop_tokens=[*STOP_TOKENS, END_OF_MESSAGE]))
    assert re.fullmatch(r"call [a-z]{3} 1\d", answers.text(0))
    assert answers.tokens[0][-1] == END_OF_MESSAGE


def whitespace_tokens() -> list[int]:
    return [token for token in range(TOKENIZER.get_vocab_size()) if decode([token]) and not decode([token]).strip()]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", json.dumps(SCHEMAS["nested objects"])),
        ("lark", f"start: %json {json.dumps(SCHEMAS['nested objects'])}"),
    ],
)
def test_model_that_wants_nothing_but_whitespace_still_gets_to_the_end(
    core: EngineCore, kind: Any, source: str
) -> None:
    bias = {token: 100.0 if "\n" in decode([token]) else 90.0 for token in whitespace_tokens()}
    sampling = SamplingParams(seed=0, logit_bias=bias)
    answers = answer(core, submission(0, to_llguidance(kind, source), max_tokens=400, sampling=sampling))
    assert answers.reasons == {0: "stop"}
    assert re.search(r"[:,]\s", answers.text(0))
    assert not re.search(r"\s{2}", answers.text(0))


def test_grammar_changes_no_neighbour_and_no_neighbour_changes_it(core: EngineCore) -> None:
    constrained = [submission(n, schema_grammar(SCHEMAS["object"])) for n in (1, 4)]
    free = [submission(n, None, max_tokens=60) for n in (0, 2, 3, 5)]
    alone: dict[int, list[int]] = {}
    for message in [*free, *constrained]:
        alone |= answer(core, message).tokens
    messages = sorted([*free, *constrained], key=lambda message: message.sequence)
    assert answer(core, *messages).tokens == alone


def test_grammar_that_leads_nowhere_fails_its_own_sequence_only(core: EngineCore) -> None:
    free = [submission(n, None, max_tokens=40) for n in (0, 1)]
    expected = answer(core, *free).tokens
    dead_end = to_llguidance("lark", 'start: "ab" <[5000000]>')
    answers = answer(core, free[0], submission(7, dead_end), free[1])
    assert "grammar" in answers.failures.pop(7).message
    assert answers.failures == {}
    assert {sequence: answers.tokens[sequence] for sequence in expected} == expected


@pytest.mark.parametrize("lark", ["start: <|no_such_token|>", 'start: "', '{"grammars": 3}'])
def test_grammar_that_the_model_cannot_follow_is_refused_before_it_is_admitted(core: EngineCore, lark: str) -> None:
    answers = answer(core, submission(0, None, max_tokens=5), submission(1, to_llguidance("lark", lark)))
    assert answers.failures[1].invalid
    assert answers.admitted == [0]
    assert answers.reasons.keys() == {0}


def test_model_without_a_fast_tokenizer_refuses_grammars_and_nothing_else(model: nn.Module, tmp_path: Path) -> None:
    core = EngineCore(model, tokenizer_file=tmp_path / "tokenizer.json")
    answers = answer(core, submission(0, OBJECT), submission(1, None, max_tokens=3))
    assert "tokenizer.json" in answers.failures[0].message
    assert len(answers.tokens[1]) == 3


def test_complete_answer_ends_also_where_nothing_is_a_stop_token(core: EngineCore) -> None:
    answers = answer(core, submission(0, to_llguidance("choice", '["yes"]'), stop_tokens=[]))
    assert answers.reasons == {0: "stop"}
    assert answers.text(0) == "yes"


def test_only_the_stop_tokens_of_the_request_end_an_answer(core: EngineCore) -> None:
    answers = answer(core, submission(0, to_llguidance("choice", '["yes"]'), stop_tokens=[END_OF_MESSAGE]))
    assert answers.tokens[0][-1] == END_OF_MESSAGE


def test_limit_cuts_a_constrained_answer(core: EngineCore) -> None:
    answers = answer(core, submission(0, to_llguidance("regex", "[a-z]{500}"), max_tokens=5))
    assert answers.reasons == {0: "length"}
    assert len(answers.tokens[0]) == 5


@pytest.mark.parametrize(("open_token", "wanted"), [(None, END_OF_TURN), (THINK, THINK)])
def test_grammar_is_for_what_comes_behind_the_thoughts(core: EngineCore, open_token: int | None, wanted: int) -> None:
    thinking = Thinking(open_token=open_token, close_tokens=(END_OF_THOUGHT,), budget=12)
    sampling = SamplingParams(seed=0, logit_bias={wanted: 50.0})
    schema = SCHEMAS["object"]
    answers = answer(core, submission(0, schema_grammar(schema), thinking=thinking, sampling=sampling))
    assert answers.reasons == {0: "stop"}
    thoughts, end, text = answers.text(0).partition("</think>")
    assert end
    assert thoughts
    jsonschema.validate(json.loads(text), schema)


def test_model_that_may_think_may_also_answer_at_once(core: EngineCore) -> None:
    thinking = Thinking(open_token=THINK, close_tokens=(END_OF_THOUGHT,))
    sampling = SamplingParams(seed=0, logit_bias={THINK: -100.0})
    answers = answer(core, submission(0, schema_grammar(SCHEMAS["object"]), thinking=thinking, sampling=sampling))
    jsonschema.validate(json.loads(answers.text(0)), SCHEMAS["object"])


@pytest.mark.parametrize("budget", [0, 3])
@pytest.mark.parametrize("grammar", [None, OBJECT])
def test_thoughts_are_closed_when_their_budget_is_used_up(core: EngineCore, grammar: str | None, budget: int) -> None:
    closing = tuple(TOKENIZER.encode(" so</think>", add_special_tokens=False).ids)
    thinking = Thinking(open_token=None, close_tokens=closing, budget=budget)
    sampling = SamplingParams(seed=0, logit_bias={END_OF_THOUGHT: -100.0})
    tokens = answer(core, submission(0, grammar, thinking=thinking, sampling=sampling, max_tokens=30)).tokens[0]
    assert tuple(tokens[budget : budget + len(closing)]) == closing
    assert END_OF_THOUGHT not in tokens[:budget]
    assert len(tokens) > budget + len(closing)


@pytest.mark.parametrize("grammar", [None, OBJECT])
def test_thoughts_that_a_budget_has_closed_are_not_begun_again(core: EngineCore, grammar: str | None) -> None:
    thinking = Thinking(open_token=THINK, close_tokens=(END_OF_THOUGHT,), budget=3, again_token=THINK)
    sampling = SamplingParams(seed=0, logit_bias={THINK: 100.0})
    tokens = answer(core, submission(0, grammar, thinking=thinking, sampling=sampling, max_tokens=30)).tokens[0]
    assert (tokens[0], tokens[4]) == (THINK, END_OF_THOUGHT)
    assert THINK not in tokens[5:]
    assert len(tokens) > 5


def test_stop_tokens_beyond_the_vocabulary_are_never_drawn_and_do_no_harm(core: EngineCore) -> None:
    grammar = to_llguidance("choice", '["yes"]')
    beyond = [core.vocabulary_size, 10**9]
    answers = answer(
        core, submission(0, grammar, stop_tokens=[*beyond, END_OF_TURN]), submission(1, OBJECT, stop_tokens=beyond)
    )
    assert answers.text(0) == "yes"
    assert answers.failures == {}


@pytest.mark.parametrize(
    "thinking",
    [
        Thinking(open_token=None, close_tokens=()),
        Thinking(open_token=9**9, close_tokens=(1,)),
        Thinking(open_token=None, close_tokens=(-1,)),
    ],
)
def test_thinking_with_tokens_that_the_model_lacks_is_refused(core: EngineCore, thinking: Thinking) -> None:
    answers = answer(core, submission(0, OBJECT, thinking=thinking), submission(1, None, max_tokens=2))
    assert answers.failures.keys() == {0}
    assert len(answers.tokens[1]) == 2


def test_end_token_that_the_grammar_asks_for_is_drawn(core: EngineCore) -> None:
    grammar = to_llguidance("lark", 'start: "a" <|end_of_text|> "b"')
    assert answer(core, submission(0, grammar, stop_tokens=[])).tokens[0][1] == END_OF_TEXT


def test_answer_that_begins_again_for_want_of_memory_keeps_to_its_grammar(core: EngineCore, model: nn.Module) -> None:
    grammar = to_llguidance("regex", "([a-z]{3}-){150}")
    messages = [submission(n, grammar, max_tokens=300) for n in range(4)]
    room = core.memory.needed(4, 256)
    crowded = answer(EngineCore(model, kv_bytes=room, tokenizer_file=TOKENIZER_FILE), *messages)
    assert crowded.failures == {}
    assert {len(PROMPT) + len(tokens) > 256 for tokens in crowded.tokens.values()} == {True}  # where two rows fit
    assert crowded.tokens == answer(core, *messages).tokens


def test_cancelled_while_it_compiles_and_while_it_decodes(core: EngineCore) -> None:
    core.submit(submission(0, OBJECT))
    core.cancel(0)
    assert len(core) == 0
    core.submit(submission(1, to_llguidance("regex", "[a-z]{500}")))
    while not any(isinstance(event, Step) for event in core.step()):
        pass
    core.cancel(1)
    assert len(core) == 0
    answers = answer(core, submission(2, to_llguidance("choice", '["yes"]')))
    assert answers.admitted == [2]
    assert answers.text(2) == "yes"


def test_many_grammars_at_once_are_each_their_own_rows(core: EngineCore) -> None:
    names = list(SCHEMAS)[:32]
    answers = answer(
        core, *(submission(n, schema_grammar(SCHEMAS[name]), max_tokens=60) for n, name in enumerate(names))
    )
    assert answers.failures == {}
    for n, name in enumerate(names):
        if answers.reasons[n] == "stop":
            jsonschema.validate(json.loads(answers.text(n)), SCHEMAS[name])


@pytest.mark.parametrize("in_parallel", [False, True])
def test_masks_allow_the_tokens_that_continue_each_row(in_parallel: bool) -> None:
    compiler: GrammarCompiler[int] = GrammarCompiler(TOKENIZER_FILE, VOCABULARY)
    letters = ["a", "b", "c"]
    for row, letter in enumerate(letters):
        compiler.start(row, to_llguidance("regex", f"{letter}+"))
    compiled: dict[int, CompiledGrammar | None] = {}
    while len(compiler):
        compiled |= {done.ticket: done.grammar for done in compiler.take(1)}
    constraints = [Constraint(compiled[row], frozenset(STOP_TOKENS), None) for row in range(len(letters))]
    allowed: Any = Masks(VOCABULARY, in_parallel)(constraints).tolist()
    texts = [TOKENIZER.decode([token], skip_special_tokens=False) for token in range(VOCABULARY)]
    for letter, row in zip(letters, allowed, strict=True):
        assert [text for text, is_allowed in zip(texts, row, strict=True) if is_allowed] == [
            text for text in texts if text and not text.strip(letter)
        ]
