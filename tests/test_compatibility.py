"""The pages in docs/ on the APIs say something of every parameter, and the tests that they name are there."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from mlx_manager.mlx_server.schemas import anthropic, embeddings, openai, responses

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "compatibility.md").read_text("utf-8")
ANTHROPIC = (ROOT / "docs" / "anthropic.md").read_text("utf-8")
RESPONSES = (ROOT / "docs" / "responses.md").read_text("utf-8")
EMBEDDINGS = (ROOT / "docs" / "embeddings.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE + ANTHROPIC + RESPONSES + EMBEDDINGS)))


def listed(section: str, page: str = PAGE) -> set[str]:
    text = page.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("section", "params", "body"),
    [
        ("Chat completions", chat_create_params.CompletionCreateParamsBase, openai.ChatCompletionRequest),
        ("Completions", completion_create_params.CompletionCreateParamsBase, openai.CompletionRequest),
    ],
)
def test_every_parameter_of_openais_client_and_of_ours_is_in_the_table(section: str, params: Any, body: Any) -> None:
    assert {*params.__annotations__, *body.model_fields} - listed(section) == set()


def test_every_field_of_anthropics_client_and_of_ours_is_in_the_table() -> None:
    params = {*message_create_params.MessageCreateParamsBase.__annotations__}
    ours = {*anthropic.MessagesRequest.model_fields}
    assert (params | ours) - listed("Fields of a request", ANTHROPIC) == set()


def test_every_field_of_responses_is_in_the_table() -> None:
    params = {*ResponseCreateParamsBase.__annotations__}
    ours = {*responses.ResponsesRequest.model_fields}
    assert (params | ours) - listed("Fields of a request", RESPONSES) == set()


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (
            "`POST /v1/embeddings`",
            {*embedding_create_params.EmbeddingCreateParams.__annotations__, *embeddings.EmbeddingRequest.model_fields},
        ),
        ("`POST /v1/rerank` and `POST /rerank`", {*embeddings.RerankRequest.model_fields}),
    ],
)
def test_every_field_of_embeddings_and_rankings_is_in_a_table(section: str, fields: set[str]) -> None:
    assert fields - listed(section, EMBEDDINGS) == set()


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_a_test_that_the_page_names_is_there(file: str, name: str) -> None:
    nodes = ast.walk(ast.parse((ROOT / file).read_text("utf-8")))
    assert name in {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_page_names_tests() -> None:
    assert len(TESTS) > 20
