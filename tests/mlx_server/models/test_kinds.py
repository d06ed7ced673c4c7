"""What a model does, by its files or its settings, and what becomes of a request that it does not answer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_manager.mlx_server.models.kinds import kind_of
from tests.running_server import RunningServer, running_server

MESSAGES = [{"role": "user", "content": "Hello"}]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "Hello"}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
]


def folder_with(folder: Path, **files: Any) -> Path:
    """`config_json={...}` becomes `config.json`."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config_json": {"architectures": ["LlamaForCausalLM"]}}, "generate"),
        ({"config_json": {"architectures": ["Gemma3ForConditionalGeneration"]}}, "generate"),
        ({"config_json": {"architectures": ["GPT2LMHeadModel"]}}, "generate"),
        ({"config_json": {"architectures": ["InternVLChatModel"]}}, "generate"),
        ({"config_json": {"model_type": "llama"}}, "generate"),
        ({"config_json": {"architectures": 7}}, "generate"),
        ({"config_json": {"architectures": ["BertModel"]}}, "embed"),
        ({"config_json": {"architectures": ["ModernBertForMaskedLM"]}}, "embed"),
        ({"config_json": {"architectures": ["Qwen3ForCausalLM"]}, "modules_json": []}, "embed"),
        (
            {
                "config_json": {"architectures": ["Qwen3ForCausalLM"]},
                "config_sentence_transformers_json": {"model_type": "SentenceTransformer"},
            },
            "embed",
        ),
        ({"config_json": {"architectures": ["XLMRobertaForSequenceClassification"]}}, "rerank"),
        (
            {
                "config_json": {"architectures": ["Qwen3ForCausalLM"]},
                "config_sentence_transformers_json": {"model_type": "CrossEncoder"},
            },
            "generate",
        ),
        (
            {
                "config_json": {"architectures": ["BertForSequenceClassification"]},
                "config_sentence_transformers_json": {"model_type": "CrossEncoder"},
            },
            "rerank",
        ),
    ],
)
def test_files_tell_what_a_model_does(tmp_path: Path, files: dict[str, Any], kind: str) -> None:
    assert kind_of(folder_with(tmp_path / "model", **files)) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mlx-community/Qwen3-Embedding-0.6B-8bit", "embed"),
        ("e5-mistral-7b-instruct-4bit", "embed"),
        ("Qwen3-0.6B", "generate"),
        ("Qwen3-Reranker-0.6B", "generate"),
    ],
)
def test_the_name_tells_of_a_decoder_that_embeds(tmp_path: Path, name: str, kind: str) -> None:
    """A conversion by mlx-lm has none of the files of sentence-transformers."""
    folder = folder_with(tmp_path / "model", config_json={"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})
    assert kind_of(folder, name) == kind


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    """With `demo`, `bert`, `forced`, which has a generator's files, and `far`, which is not on this machine."""
    root = tmp_path_factory.mktemp("kinds")
    folder_with(root / "models/bert", config_json={"architectures": ["BertModel"], "model_type": "bert"})
    shutil.copytree(babbler, root / "models/forced")
    config = root / "mlx-manager.toml"
    config.write_text(
        '[[models]]\nid = "forced"\nkind = "rerank"\n[[models]]\nid = "far"\nrepo = "nowhere/far"\nkind = "embed"\n'
    )
    with running_server(root, models_dir=root / "models", config=config) as running:
        yield running


def test_models_are_listed_with_their_kinds(server: RunningServer) -> None:
    kinds = {"demo": "generate", "bert": "embed", "forced": "rerank", "far": "embed"}
    for path, models in (("/v1/models", "data"), ("/admin/pool", "models")):
        listed = httpx.get(f"{server.url}{path}").json()[models]
        assert kinds.items() <= {model["id"]: model["kind"] for model in listed}.items()
        assert {model["id"]: model["kind"] for model in listed}["mlx-community/Llama-3.2-3B-Instruct-4bit"] is None


@pytest.mark.parametrize(("path", "body"), REQUESTS)
@pytest.mark.parametrize(
    ("model", "endpoint"), [("bert", "POST /v1/embeddings"), ("forced", "POST /v1/rerank"), ("far", "embeddings")]
)
def test_request_for_another_kind_of_model_is_told_where_to_go(
    server: RunningServer, path: str, body: dict[str, Any], model: str, endpoint: str
) -> None:
    refused = server.post(path, {"model": model, **body})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert endpoint in error["message"]
    assert repr(model) in error["message"]
    assert len(server.workers()) == 1  # the demo's: nothing was loaded for the refusal


def test_worker_tells_what_it_computes_on(server: RunningServer) -> None:
    (demo,) = [model for model in httpx.get(f"{server.url}/admin/pool").json()["models"] if model["id"] == "demo"]
    assert demo["device"]["backend"] in ("cpu", "metal", "cuda")
    assert demo["device"]["name"]
    assert demo["device"]["generation"]
    assert demo["dtype"] in ("float32", "bfloat16", "float16")
