"""Unused fields of Anthropic Messages: which are ignored and which are refused."""

from mlx_manager.mlx_server.protocols.parameters import ParameterTable

_BLOCK_FIELDS = ("citations", "caller", "toolset_name")
_PLACES_OF_BLOCKS = ("system[].", "messages[].content[].", "messages[].content[].content[].")

MESSAGES = ParameterTable(
    ignored=frozenset(
        {
            "metadata",
            "service_tier",
            "speed",
            "inference_geo",
            "user_profile_id",
            "workspace_id",
            "diagnostics",
            "betas",
            "tools[].defer_loading",
            "tools[].eager_input_streaming",
            "tools[].allowed_callers",
            "tools[].input_examples",
            *(f"{place}{field}" for place in _PLACES_OF_BLOCKS for field in _BLOCK_FIELDS),
        }
    ),
    refused={
        "container": (),
        "mcp_servers": ([],),
        "fallbacks": ([],),
        "n": (1,),
        "stop": ([],),
        "seed": (),
        "logit_bias": ({},),
        "logprobs": (False,),
        "max_completion_tokens": (),
        "min_p": (0,),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "response_format": ({"type": "text"},),
        "reasoning_effort": (),
        "functions": ([],),
        "parallel_tool_calls": (True,),
        "stream_options": (),
    },
)
"""Ignored: bookkeeping, and performance hints that do not change the answer. Refused: fields that would change the
answer, including names from other protocols, unless the value is one of the listed no-op values."""
