import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.errors import ModelLoadFailed, ModelNotFound
from mlx_manager.mlx_server.models.catalog import (
    Catalog,
    ModelDefaults,
    ModelEntry,
    locate,
    read_defaults,
    weights_bytes,
)
from mlx_manager.mlx_server.types import SamplingOverrides

LLAMA = "mlx-community/Llama-3.2-3B-Instruct-4bit"
NOTHING_SAID = ModelDefaults(sampling=SamplingOverrides(), max_tokens=None, context_length=None, eos_token_ids=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


def ids(catalog: Catalog) -> list[str]:
    return [entry.id for entry in catalog]


def test_the_default_model_the_demo_and_the_available_ones_are_loadable() -> None:
    catalog = Catalog("org/default", [LLAMA])
    assert ids(catalog) == ["org/default", "demo", LLAMA]
    assert catalog.default_id == "org/default"


def test_the_demo_is_always_loadable_from_the_package() -> None:
    assert Catalog("org/default", []).resolve("demo") == ModelEntry("demo", demo_model_path().resolve())


def test_a_hub_model_is_listed_under_its_id_and_has_no_folder_yet() -> None:
    assert Catalog("demo", [LLAMA]).resolve(LLAMA) == ModelEntry(LLAMA, None)


def test_a_model_that_is_listed_twice_is_there_once() -> None:
    assert ids(Catalog("demo", ["demo", LLAMA, LLAMA])) == ["demo", LLAMA]


def test_a_folder_is_named_after_itself(folder: Path) -> None:
    catalog = Catalog(str(folder), [])
    assert catalog.default_id == "my-model"
    assert catalog.resolve("my-model") == ModelEntry("my-model", folder.resolve())


@pytest.mark.parametrize("typed", ["{}", "{}/", "{}/.", "{}/../my-model"])
def test_the_path_as_typed_is_an_alias(folder: Path, typed: str) -> None:
    catalog = Catalog(typed.format(folder), [])
    assert catalog.resolve(typed.format(folder)).id == "my-model"
    assert ids(catalog) == ["my-model", "demo"]


@pytest.mark.parametrize("typed", ["my-model", "./my-model", "my-model/"])
def test_a_relative_path_is_an_alias_too(folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(folder.parent)
    entry = Catalog(typed, []).resolve(typed)
    assert entry == ModelEntry("my-model", folder.resolve())


def test_a_path_in_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Catalog("~/my-model", []).resolve("~/my-model") == ModelEntry("my-model", folder.resolve())


def test_one_folder_may_be_typed_in_several_ways(folder: Path) -> None:
    catalog = Catalog(str(folder), [f"{folder}/"])
    assert ids(catalog) == ["my-model", "demo"]
    assert catalog.resolve(f"{folder}/") == catalog.resolve(str(folder))


def test_of_two_folders_with_one_name_the_first_stays(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "elsewhere" / "my-model"
    other.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        catalog = Catalog(str(folder), [str(other)])
    assert catalog.resolve("my-model").folder == folder.resolve()
    assert str(other.resolve()) in caplog.text
    with pytest.raises(ModelNotFound):
        catalog.resolve(str(other))


def test_a_folder_called_demo_as_the_default_model_is_the_one_served(tmp_path: Path) -> None:
    mine = tmp_path / "demo"
    mine.mkdir()
    catalog = Catalog(str(mine), [])
    assert catalog.resolve(catalog.default_id).folder == mine.resolve()
    assert ids(catalog) == ["demo"]


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_makes_no_folder_loadable(name: str) -> None:
    assert all(entry.folder != Path.cwd() for entry in Catalog("demo", [name]))


@pytest.mark.parametrize(
    ("model_id", "near"), [("Demo", "demo"), ("demo2", "demo"), (LLAMA.lower(), LLAMA), (LLAMA[:-1], LLAMA)]
)
def test_an_unknown_id_is_not_found_and_near_ones_are_named(model_id: str, near: str) -> None:
    with pytest.raises(ModelNotFound) as unknown:
        Catalog("demo", [LLAMA, "org/quite-another"]).resolve(model_id)
    assert repr(model_id) in unknown.value.message
    assert near in unknown.value.message
    assert "org/quite-another" not in unknown.value.message
    assert unknown.value.param == "model"


def test_an_id_near_to_none_is_answered_with_all_there_are() -> None:
    with pytest.raises(ModelNotFound) as unknown:
        Catalog("demo", [LLAMA]).resolve("gpt-4o")
    assert "demo" in unknown.value.message
    assert LLAMA in unknown.value.message


@pytest.mark.parametrize("model_id", ["../../etc", "/etc", "/", ".", "..", "~", "demo/../demo", "", "\0", "a" * 10_000])
def test_an_id_is_never_opened_as_a_path(model_id: str) -> None:
    with pytest.raises(ModelNotFound):
        Catalog("demo", [LLAMA]).resolve(model_id)


def test_a_real_model_folder_that_was_not_listed_is_not_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    catalog = Catalog(str(folder), [])
    for model_id in (str(tmp_path / "other"), "other", "./other", "./my-model", str(demo_model_path())):
        with pytest.raises(ModelNotFound):
            catalog.resolve(model_id)


@pytest.mark.anyio
async def test_a_folder_is_located_where_it_lies(folder: Path) -> None:
    assert await locate(ModelEntry("my-model", folder)) == folder


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere/at/all", "two words"])
async def test_a_name_that_is_neither_folder_nor_repo_id_cannot_be_loaded(name: str) -> None:
    entry = Catalog(name, []).resolve(name)
    with pytest.raises(ModelLoadFailed, match="neither a folder on this machine nor a Hugging Face repo id"):
        await locate(entry)


def test_only_the_weights_count_as_weights(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"x" * 20)
    (folder / "tokenizer.json").write_bytes(b"x" * 3)
    assert weights_bytes(folder) == 120


def write_configs(folder: Path, generation: object = None, config: object = None) -> None:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_defaults_come_from_generation_config(folder: Path) -> None:
    sampling: dict[str, Any] = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1}
    write_configs(folder, {**sampling, "max_new_tokens": 512, "do_sample": True})
    defaults = read_defaults(folder)
    assert defaults.sampling == replace(SamplingOverrides(), **sampling)
    assert defaults.max_tokens == 512


def test_what_the_files_do_not_say_is_none(folder: Path) -> None:
    assert read_defaults(folder) == NOTHING_SAID


def test_a_model_that_does_not_sample_is_greedy(folder: Path) -> None:
    write_configs(folder, {"do_sample": False, "temperature": 0.7})
    assert read_defaults(folder).sampling.temperature == 0.0


def test_a_temperature_of_zero_is_a_temperature(folder: Path) -> None:
    write_configs(folder, {"temperature": 0})
    assert read_defaults(folder).sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"text_config": {"max_position_embeddings": 4096}, "max_position_embeddings": 7}, 4096),
        ({"max_position_embeddings": "long"}, None),
        ({"text_config": []}, None),
    ],
)
def test_the_context_length_is_that_of_the_language_model(folder: Path, config: object, expected: int | None) -> None:
    write_configs(folder, config=config)
    assert read_defaults(folder).context_length == expected


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [128001, 128008, 128009]}, {"eos_token_id": 128001}, {128001, 128008, 128009}),
        ({"eos_token_id": None}, {"eos_token_id": [5, 6]}, {5, 6}),
        ({"eos_token_id": 0}, {}, {0}),
        ({"eos_token_id": "</s>"}, {"eos_token_id": ["</s>", None]}, set()),
    ],
)
def test_eos_ids_of_both_files_are_taken(folder: Path, generation: object, config: object, expected: set[int]) -> None:
    write_configs(folder, generation, config)
    assert set(read_defaults(folder).eos_token_ids) == expected


@pytest.mark.parametrize("broken", ["", "{", "[1, 2]", "null", '"text"', '{"temperature": "hot", "top_p": [], "a": }'])
def test_a_broken_file_says_nothing_and_the_other_is_still_read(folder: Path, broken: str) -> None:
    write_configs(folder, broken, {"eos_token_id": 7})
    assert read_defaults(folder) == replace(NOTHING_SAID, eos_token_ids=(7,))


def test_values_of_a_wrong_type_say_nothing(folder: Path) -> None:
    wrong = {"temperature": "0.7", "top_p": True, "top_k": 1.5, "max_new_tokens": True, "eos_token_id": [True, 3]}
    write_configs(folder, wrong)
    assert read_defaults(folder) == replace(NOTHING_SAID, eos_token_ids=(3,))


def test_the_demo_model_has_defaults_a_context_and_one_eos() -> None:
    defaults = read_defaults(demo_model_path())
    assert defaults.sampling.temperature is not None
    assert (defaults.context_length or 0) >= 4096
    assert len(set(defaults.eos_token_ids)) == 1


def test_generation_config_that_no_request_could_ask_for_is_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nonsense = {"max_new_tokens": 0, "temperature": -1, "top_p": 5, "repetition_penalty": 0, "min_p": 2, "top_k": -3}
    (tmp_path / "generation_config.json").write_text(json.dumps(nonsense))
    defaults = read_defaults(tmp_path)
    assert defaults.sampling == SamplingOverrides()
    assert defaults.max_tokens is None
    assert all(name in caplog.text for name in nonsense)
