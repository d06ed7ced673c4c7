import json
import os
from typing import Any

import pytest
from pydantic import ValidationError

from mlx_manager.mlx_server.config import MLXServerSettings

KEY = "sk-never-to-be-seen"
ENTRY: dict[str, Any] = {"name": "gpu", "kind": "openai", "base_url": "http://gpu:8000/v1"}


@pytest.fixture(autouse=True)
def _environment_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("MLX_SERVER_"):
            monkeypatch.delenv(name)


def read(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any]) -> MLXServerSettings:
    monkeypatch.setenv("MLX_SERVER_UPSTREAMS", json.dumps(entries))
    return MLXServerSettings()


def test_upstreams_are_a_json_list_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"models": ["a", "b"], "prefix": "x:", "fallback": ["demo"], "timeout_seconds": 5}
    (upstream,) = read(monkeypatch, ENTRY | others | {"api_key": f" {KEY}\n"}).upstreams
    assert upstream.model_dump(exclude={"api_key"}) == ENTRY | others
    assert upstream.api_key is not None
    assert upstream.api_key.get_secret_value() == KEY


def test_upstreams_may_be_tables_of_a_file() -> None:
    assert MLXServerSettings.model_validate({"upstreams": [ENTRY]}).upstreams[0].name == "gpu"


@pytest.mark.parametrize(
    ("entry", "prefix"),
    [
        ({}, "gpu/"),
        ({"prefix": "g:"}, "g:"),
        ({"models": ["a"]}, ""),
        ({"models": ["a"], "prefix": "g:"}, "g:"),
    ],
)
def test_ids_begin_with_the_name_where_they_are_the_upstreams_own_list(entry: dict[str, Any], prefix: str) -> None:
    assert MLXServerSettings(upstreams=[ENTRY | entry]).upstreams[0].prefix_of_ids == prefix


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"name": "a b"}, ("upstreams", 0, "name")),
        ({"kind": "ollama"}, ("upstreams", 0, "kind")),
        ({"base_url": "gpu:8000"}, ("upstreams", 0, "base_url")),
        ({"base_url": f"http://me:{KEY}@gpu:8000"}, ("upstreams", 0, "base_url")),
        ({"api_key": KEY + "\u0442"}, ("upstreams", 0, "api_key")),
        ({"models": []}, ("upstreams", 0, "models")),
        ({"models": [""]}, ("upstreams", 0, "models", 0)),
        ({"prefix": ""}, ("upstreams", 0)),
        ({"timeout_seconds": 0}, ("upstreams", 0, "timeout_seconds")),
        ({"retries": 3}, ("upstreams", 0, "retries")),
    ],
)
def test_entry_that_cannot_be_used_is_told_by_its_place_and_without_its_key(
    monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    with pytest.raises(ValidationError) as raised:
        read(monkeypatch, ENTRY | {"api_key": KEY} | entry)
    assert raised.value.errors()[0]["loc"] == place
    assert KEY not in str(raised.value)


def test_two_upstreams_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="two upstreams have the name 'gpu'"):
        read(monkeypatch, ENTRY, ENTRY)


def test_what_is_no_json_is_told_without_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_SERVER_UPSTREAMS", f"[{KEY}")
    with pytest.raises(ValidationError, match="upstreams") as raised:
        MLXServerSettings()
    assert KEY not in str(raised.value)


def test_key_is_in_no_representation_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, ENTRY | {"api_key": KEY})
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
