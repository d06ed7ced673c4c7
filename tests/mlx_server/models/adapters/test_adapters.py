import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.errors import ChatTemplateMissing
from mlx_manager.mlx_server.models.adapters import DefaultAdapter, LlamaAdapter, ModelAdapter, get_adapter
from mlx_manager.mlx_server.models.tokenization import Tokenizer, load_tokenizer

UNK = 0
END_OF_TEXT, EOT, EOM, END_OF_TURN = 1, 2, 3, 4
LLAMA_3 = {"<|end_of_text|>": END_OF_TEXT, "<|eot_id|>": EOT, "<|eom_id|>": EOM}


class _Vocabulary:
    """A plain tokenizer, as transformers has them: what it answers for an unknown token differs from one to another."""

    def __init__(
        self,
        ids: dict[str, int],
        *,
        eos_token_id: int | list[int] | None = END_OF_TEXT,
        unk_token_id: int | None = None,
    ) -> None:
        self._ids = ids
        self.eos_token_id = eos_token_id
        self.unk_token_id = unk_token_id

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._ids.get(token, self.unk_token_id)


def vocabulary(ids: dict[str, int], **options: Any) -> Any:
    return _Vocabulary(ids, **options)


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return load_tokenizer(demo_model_path())


@pytest.fixture(scope="module")
def without_template(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("base-model")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_path() / name, folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(("adapter", "family"), [(LlamaAdapter(), "llama"), (DefaultAdapter(), "default")])
def test_every_adapter_is_a_model_adapter_of_its_family(adapter: ModelAdapter, family: str) -> None:
    assert isinstance(adapter, ModelAdapter)
    assert adapter.family == family


def test_llama_stops_at_end_of_text_and_at_every_end_of_a_turn() -> None:
    tokenizer = vocabulary({**LLAMA_3, "<|end_of_turn|>": END_OF_TURN})
    assert sorted(LlamaAdapter().get_stop_tokens(tokenizer)) == [END_OF_TEXT, EOT, EOM, END_OF_TURN]


@pytest.mark.parametrize(
    ("model_id", "turn_ends"),
    [
        ("Qwen3-8B", ["<|im_end|>"]),
        ("gemma-3-4b-it", ["<end_of_turn>"]),
        ("functiongemma-270m-it", ["<end_of_turn>", "<start_function_response>"]),
        ("Phi-4-mini-instruct", ["<|end|>"]),
        ("GLM-4.5-Air", ["<|user|>", "<|observation|>"]),
        ("gpt-oss-20b", ["<|return|>", "<|call|>"]),
        ("Llama-4-Scout", ["<|eot|>", "<|eom|>"]),
    ],
)
def test_every_family_stops_at_the_ends_of_its_turns(model_id: str, turn_ends: list[str]) -> None:
    tokenizer = vocabulary({token: 10 + n for n, token in enumerate(turn_ends)})
    assert get_adapter(model_id).get_stop_tokens(tokenizer) == [END_OF_TEXT, *range(10, 10 + len(turn_ends))]


@pytest.mark.parametrize("unk_token_id", [None, UNK])
def test_llama_stops_only_at_tokens_that_the_vocabulary_has(unk_token_id: int | None) -> None:
    tokenizer = vocabulary({"<|end_of_text|>": END_OF_TEXT, "<|eot_id|>": EOT}, unk_token_id=unk_token_id)
    assert LlamaAdapter().get_stop_tokens(tokenizer) == [END_OF_TEXT, EOT]


@pytest.mark.parametrize("eos_token_id", [EOT, [EOT, EOM], [EOT, EOT, END_OF_TEXT]])
def test_stop_tokens_have_no_duplicates(eos_token_id: int | list[int]) -> None:
    tokens = LlamaAdapter().get_stop_tokens(vocabulary(LLAMA_3, eos_token_id=eos_token_id))
    assert len(tokens) == len(set(tokens))
    assert {EOT, EOM} <= set(tokens)


def test_a_token_with_id_zero_is_a_token() -> None:
    tokenizer = vocabulary({"<|eot_id|>": 0}, eos_token_id=0)
    assert LlamaAdapter().get_stop_tokens(tokenizer) == [0]
    assert DefaultAdapter().get_stop_tokens(tokenizer) == [0]


def test_a_tokenizer_without_eos_names_no_stop_token() -> None:
    assert DefaultAdapter().get_stop_tokens(vocabulary({}, eos_token_id=None)) == []
    assert LlamaAdapter().get_stop_tokens(vocabulary({"<|eot_id|>": EOT}, eos_token_id=None)) == [EOT]


def test_stop_tokens_of_the_demo_model_are_its_eos_and_both_ends_of_a_turn(demo: Tokenizer) -> None:
    expected = [demo.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")]
    assert demo.eos_token == "<|end_of_text|>"
    assert sorted(LlamaAdapter().get_stop_tokens(demo)) == sorted(expected)


def test_is_stop_token_tells_the_end_of_a_turn_from_text(demo: Tokenizer) -> None:
    adapter = LlamaAdapter()
    assert all(adapter.is_stop_token(token, demo) for token in adapter.get_stop_tokens(demo))
    assert not adapter.is_stop_token(demo.bos_token_id, demo)
    assert not adapter.is_stop_token(demo.convert_tokens_to_ids("a"), demo)


def test_the_default_adapter_stops_at_the_eos_ids_that_the_tokenizer_names(demo: Tokenizer) -> None:
    assert DefaultAdapter().get_stop_tokens(demo) == [demo.eos_token_id]
    assert DefaultAdapter().get_stop_tokens(vocabulary(LLAMA_3, eos_token_id=[EOM, EOT])) == [EOM, EOT]


def test_the_default_adapter_stops_at_all_eos_ids_of_the_models_config(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_path() / name, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.eos_token_ids = {7, 9}
    assert sorted(DefaultAdapter().get_stop_tokens(tokenizer)) == sorted({7, 9, tokenizer.eos_token_id})


@pytest.mark.parametrize("adapter", [LlamaAdapter(), DefaultAdapter()])
def test_a_chat_is_written_in_llama_3s_layout_and_leaves_the_turn_to_the_assistant(
    adapter: ModelAdapter, demo: Tokenizer
) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi 😀"}]
    assert adapter.apply_chat_template(demo, messages) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi 😀<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_a_prompt_holds_nothing_that_the_client_did_not_ask_for(demo: Tokenizer) -> None:
    assert LlamaAdapter().apply_chat_template(demo, [{"role": "user", "content": "Hi"}]) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_without_a_generation_prompt_the_text_ends_with_the_last_message(demo: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    prompt = LlamaAdapter().apply_chat_template(demo, messages, add_generation_prompt=False)
    assert prompt.endswith("Hi<|eot_id|>")


def test_template_arguments_reach_the_template(demo: Tokenizer) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    tool = {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": {}}}
    assert "get_weather" in LlamaAdapter().apply_chat_template(demo, messages, tools=[tool])


@pytest.mark.parametrize("adapter", [LlamaAdapter(), DefaultAdapter()])
def test_a_model_without_a_chat_template_says_so(adapter: ModelAdapter, without_template: Tokenizer) -> None:
    with pytest.raises(ChatTemplateMissing, match="/v1/completions") as refused:
        adapter.apply_chat_template(without_template, [{"role": "user", "content": "Hi"}])
    assert refused.value.param == "model"


def test_a_model_without_a_chat_template_still_has_its_stop_tokens(without_template: Tokenizer) -> None:
    assert without_template.eos_token_id in LlamaAdapter().get_stop_tokens(without_template)


def test_the_demo_models_config_and_tokenizer_agree_on_the_end_of_text(demo: Tokenizer) -> None:
    config: dict[str, Any] = json.loads((demo_model_path() / "config.json").read_text("utf-8"))
    assert config["eos_token_id"] == demo.eos_token_id
