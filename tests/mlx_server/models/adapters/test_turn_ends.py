"""The token that a chat template writes behind an answer ends answers, whatever the model is called."""

import json
from pathlib import Path

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.adapters import DefaultAdapter, get_output_format
from mlx_manager.mlx_server.models.adapters.turn_ends import turn_end_tokens
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer
from tests.pools import pool_of
from tests.small_models import make_random_llama

TEMPLATES = Path(__file__).parent / "templates"
ADDED = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|assistant|>", "<|return|>", "<|call|>", "<|start|>"]


def tokenizer_with(template: str | None) -> Tokenizer:
    tokenizer = load_tokenizer(demo_model_path())
    tokenizer.add_tokens(ADDED, special_tokens=True)
    tokenizer.add_tokens(["<turn_over>", "\n\n"])
    tokenizer.chat_template = template
    return tokenizer


def turns(before: str, behind: str, opening: str = "") -> str:
    """A template that writes each turn between these, and `opening` to ask for an answer."""
    message = "{{ BEFORE + message.role + ':' + message.content + BEHIND }}"
    whole = (
        "{% for message in messages %}" + message + "{% endfor %}{% if add_generation_prompt %}{{ OPENING }}{% endif %}"
    )
    for name, text in {"BEFORE": before, "BEHIND": behind, "OPENING": opening}.items():
        whole = whole.replace(name, json.dumps(text))
    return whole


def ends(template: str | None) -> list[str]:
    tokenizer = tokenizer_with(template)
    adapter = DefaultAdapter()
    found = turn_end_tokens(tokenizer, adapter, get_output_format(adapter, tokenizer))
    names: list[str] = tokenizer.convert_ids_to_tokens(found)
    return names


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (turns("<|im_start|>", "<|im_end|>\n", "<|im_start|>assistant\n"), ["<|im_end|>"]),
        (turns("<|assistant|>", "\n<|end|>\n"), ["<|end|>"]),
        (turns("", " <|eot_id|>"), ["<|eot_id|>"]),
        (turns("", "<turn_over>"), ["<turn_over>"]),
        (turns("", "<|end|><|im_start|>"), ["<|end|>"]),
        (turns("", ""), []),
        (turns("", "\n"), []),
        (turns("", "\n\n"), []),
        (turns("### ", "\n### End\n"), []),
        (turns("", "<|assistant|>", "<|assistant|>"), []),
        (turns("", "<|unheard_of|>"), []),
        ("{{ raise_exception('no') }}", []),
        ("{{ messages[0].content }}<|end|>", []),
        ("{% for", []),
        (None, []),
    ],
)
def test_the_end_of_a_turn_is_the_token_right_behind_the_answer(template: str | None, expected: list[str]) -> None:
    assert ends(template) == expected


def test_a_template_of_harmony_ends_answers_and_calls_and_not_its_reasoning() -> None:
    assert ends((TEMPLATES / "harmony.jinja").read_text("utf-8")) == ["<|return|>", "<|call|>"]


@pytest.mark.anyio
async def test_a_loaded_model_of_no_known_family_stops_there(tmp_path: Path) -> None:
    folder = make_random_llama(tmp_path / "mystery")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"eos_token": None}))
    (folder / "chat_template.jinja").write_text(turns("", "<|python_tag|>"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    async with pool_of(folder) as pool:
        model = await pool.get_model("mystery")
        python_tag = model.tokenizer.convert_tokens_to_ids("<|python_tag|>")
        assert {python_tag, 7, 8} <= set(model.stop_tokens)
