"""Converts output constraints to `Grammar`: OpenAI's `response_format` and vLLM's `guided_*`. Pure."""

import json
from collections.abc import Iterator

from mlx_manager.mlx_server.errors import InvalidRequest, UnsupportedParameter
from mlx_manager.mlx_server.protocols.parameters import check_unused
from mlx_manager.mlx_server.protocols.wire import json_text
from mlx_manager.mlx_server.schemas import openai
from mlx_manager.mlx_server.types import Grammar


def chat_grammar(body: openai.ChatCompletionRequest, reject_unknown: bool) -> Grammar | None:
    """Raises InvalidRequest and UnsupportedParameter, which name the field."""
    requested = [*_guided(body)]
    if body.response_format is not None:
        requested = [*_response_format(body.response_format, reject_unknown), *requested]
    return _only(requested)


def completion_grammar(body: openai.CompletionRequest) -> Grammar | None:
    return _only([*_guided(body)])


def _only(requested: list[Grammar]) -> Grammar | None:
    if len(requested) > 1:
        names = [grammar.param.partition(".")[0] for grammar in requested]
        raise InvalidRequest(
            f"{' and '.join(names)} are mutually exclusive. Send only one of these fields.", param=names[1]
        )
    return requested[0] if requested else None


def _guided(body: openai.GenerationBody) -> Iterator[Grammar]:
    if body.guided_json is not None:
        schema = body.guided_json
        text = schema if isinstance(schema, str) else json_text(schema, "guided_json")
        yield Grammar("json_schema", text, "guided_json")
    if body.guided_regex is not None:
        yield Grammar("regex", body.guided_regex, "guided_regex")
    if body.guided_choice is not None:
        yield Grammar("choice", json.dumps(body.guided_choice), "guided_choice")
    if body.guided_grammar is not None:
        yield Grammar("lark", body.guided_grammar, "guided_grammar")


def _response_format(requested: openai.ResponseFormat, reject_unknown: bool) -> Iterator[Grammar]:
    """The schema is enforced with or without `strict`; a strict schema that cannot be enforced fully is refused."""
    check_unused(requested.model_extra, reject_unknown, "response_format.")
    match requested.type:
        case "text":
            return
        case "json_object":
            yield _json_object(requested.schema_)
        case "json_schema":
            yield _json_schema(requested.json_schema, reject_unknown)
        case other:
            raise UnsupportedParameter(
                f"response_format of type {other[:100]!r} is not supported. Use 'text', 'json_object' or "
                "'json_schema'.",
                param="response_format.type",
            )


def _json_object(schema: dict[str, object] | None) -> Grammar:
    """llama.cpp clients send the schema in the same object as the type."""
    if schema is None:
        return json_object_grammar("response_format")
    where = "response_format.schema"
    return Grammar("json_schema", json_text(schema, where), where)


def _json_schema(requested: openai.JsonSchemaFormat | None, reject_unknown: bool) -> Grammar:
    if requested is None:
        raise InvalidRequest(
            "response_format of type 'json_schema' has no 'json_schema'. Send one with a name and a schema.",
            param="response_format.json_schema",
        )
    check_unused(requested.model_extra, reject_unknown, "response_format.json_schema.")
    return json_schema_grammar(requested, "response_format.json_schema.schema")


def json_object_grammar(where: str) -> Grammar:
    return Grammar("json_object", "", where)


def json_schema_grammar(requested: openai.JsonSchemaFormat, where: str) -> Grammar:
    """`where`: the path of the schema in the request body."""
    if requested.schema_ is None:
        return json_object_grammar(where)
    return Grammar("json_schema", json_text(requested.schema_, where), where, requested.strict is True)
