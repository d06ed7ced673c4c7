"""Builds Pydantic AI models. Imported only when a model is created, because it imports Pydantic AI."""

import functools
from dataclasses import dataclass

from openai import DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionAssistantMessageParam
from pydantic import SecretStr
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles import InlineDefsJsonSchemaTransformer, merge_profile
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from mlx_manager.proxies import client_for

_LOCAL_SERVER: OpenAIModelProfile = {
    "openai_supports_strict_tool_definition": False,
    "openai_chat_supports_multiple_system_messages": False,  # many chat templates refuse a second one
    "openai_chat_supports_document_input": False,
    "json_schema_transformer": InlineDefsJsonSchemaTransformer,  # templates print a tool's schema without its $defs
}


class LocalChatModel(OpenAIChatModel):
    """Sends empty instead of null content with tool calls: llama-cpp-python refuses null."""

    @dataclass
    class _MapModelResponseContext(OpenAIChatModel._MapModelResponseContext):
        def _into_message_param(self) -> ChatCompletionAssistantMessageParam | None:
            message = super()._into_message_param()
            if message is not None and message.get("content") is None:
                message["content"] = ""
            return message


def build(
    model_name: str, *, provider_name: str, base_url: str, api_key: SecretStr | None, profile: OpenAIModelProfile
) -> OpenAIChatModel:
    """Raises UnusableProxy."""
    make_client = functools.partial(client_for, base_url, DefaultAsyncHttpxClient)
    client = make_client()
    provider = OpenAICompatibleProvider(
        provider_name,
        base_url=base_url,
        api_key=api_key.get_secret_value() if api_key is not None else None,
        http_client=client,
        profile=merge_profile(_LOCAL_SERVER, profile),
    )
    provider._own_http_client, provider._http_client_factory = client, make_client  # it closes its own client
    return LocalChatModel(model_name, provider=provider)
