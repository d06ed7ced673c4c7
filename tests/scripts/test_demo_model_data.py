"""The demo model's training data, tokenizer and chat template. Runs without torch, on the tokenizer that ships
with the model."""

import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from demo_model.chat import Conversation, Segment, Tool, ToolCall, Turn, render
from demo_model.dataset import (
    documents,
    evaluation_names,
    evaluation_questions,
    held_out_prompts,
    normalise,
    training_conversation,
)

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts"
MODEL = REPOSITORY / "backend" / "mlx_manager" / "demo"
WEATHER = Tool("get_weather", "Get the weather", (("city", "string"), ("unit", "string")))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(MODEL)


def rendered(tokenizer: Any, conversation: Conversation, **options: object) -> str:
    text: str = tokenizer.apply_chat_template(
        conversation.messages(),
        tools=[tool.schema() for tool in conversation.tools] or None,
        enable_thinking=conversation.thinking,
        tokenize=False,
        **options,
    )
    return text


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def test_no_evaluation_prompt_is_in_the_training_data() -> None:
    rng = Random("leaks")
    for _ in range(20_000):
        for turn in training_conversation(rng).turns:
            assert turn.role != "user" or normalise(turn.content) not in held_out_prompts()


def test_every_skill_is_measured_with_different_questions() -> None:
    for name in evaluation_names():
        questions = evaluation_questions(name)
        assert len(questions) >= 30, name
        assert all(question.turns[-1].role == "assistant" for question in questions)


def test_data_does_not_depend_on_the_hash_seed() -> None:
    imports = "from demo_model.dataset import documents; from itertools import islice"
    code = f"{imports}; print(list(islice(documents(1, 2), 300)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(SCRIPTS), "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1


def test_steps_have_different_data() -> None:
    assert list(islice(documents(1, 2), 5)) != list(islice(documents(1, 3), 5))


def test_training_text_is_what_the_chat_template_renders(tokenizer: Any) -> None:
    rng = Random("template")
    for _ in range(1_500):
        conversation = training_conversation(rng)
        thought = conversation.turns[-1].thinking() if conversation.thinking or conversation.told_to_think else ""
        text = joined(render(conversation)).replace(thought, "") if thought else joined(render(conversation))
        assert rendered(tokenizer, conversation) == text


def test_prompt_is_the_start_of_the_training_text(tokenizer: Any) -> None:
    for name in evaluation_names():
        for question in evaluation_questions(name)[:10]:
            asked = Conversation(question.turns[:-1], question.system, question.tools, question.thinking)
            assert rendered(tokenizer, asked, add_generation_prompt=True) == joined(render(question)[:-1])


def test_encoding_a_rendered_chat_equals_encoding_its_pieces(tokenizer: Any) -> None:
    rng = Random("pieces")
    for _ in range(500):
        segments = render(training_conversation(rng))
        pieces = [token for segment in segments for token in tokenizer.encode(segment.text, add_special_tokens=False)]
        assert tokenizer.encode(joined(segments), add_special_tokens=False) == pieces


def test_tool_calls_in_the_history_are_rendered_as_the_model_writes_them(tokenizer: Any) -> None:
    call = ToolCall("get_weather", '{"city": "Paris"}')
    turns = (Turn("user", "Weather in Paris?"), Turn("assistant", "", tool_call=call), Turn("ipython", "sunny"))
    conversation = Conversation(turns, tools=(WEATHER,))
    text = rendered(tokenizer, conversation)
    assert '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eom_id|>' in text
    assert "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>" in text
    assert WEATHER.line() in text
    messages = conversation.messages()
    messages[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris"}
    as_object = tokenizer.apply_chat_template(messages, tools=[WEATHER.schema()], tokenize=False)
    assert as_object == text


def test_thinking_is_ordered_only_when_enabled(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert plain == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert "Think" not in plain
    assert "Think before you answer." in tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=True)


def test_thoughts_are_left_out_of_the_history(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello!"},
        {"role": "user", "content": [{"type": "text", "text": "Bye"}]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert "A greeting." not in text
    assert "<|end_header_id|>\n\nHello!<|eot_id|>" in text
    assert "<|end_header_id|>\n\nBye<|eot_id|>" in text


@pytest.mark.parametrize(
    "text", ["こんにちは", "👨‍👩‍👧 😀", "naïve café", "Привет", "\x00\x7f\u0085", "a  b\n\n\n c\t"]
)
def test_any_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_only_end_of_text_is_the_end(tokenizer: Any) -> None:
    assert tokenizer.eos_token == "<|end_of_text|>"
    assert tokenizer.encode("Once")[0] == tokenizer.bos_token_id


def test_think_marks_are_single_tokens_that_decode_as_text(tokenizer: Any) -> None:
    ids = tokenizer.encode("<think>so</think>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>so</think>"
    assert ids[0] == tokenizer.convert_tokens_to_ids("<think>")
