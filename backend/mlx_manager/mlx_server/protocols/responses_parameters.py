"""Unused fields of the Responses API: which are ignored and which are refused."""

from mlx_manager.mlx_server.protocols.parameters import ParameterTable

_ITEM = "input[]."
_PLACES_OF_PARTS = (f"{_ITEM}content[].", f"{_ITEM}output[].", f"{_ITEM}summary[].")
_PLACES_OF_TOOLS = ("tools[].", "tools[].tools[].", f"{_ITEM}tools[].", f"{_ITEM}tools[].tools[].")

RESPONSES = ParameterTable(
    ignored=frozenset(
        {
            "client_metadata",
            "max_tool_calls",
            "prompt_cache_options",
            "service_tier",
            "access_programs",
            "reasoning.context",
            "reasoning.mode",
            *(f"{_ITEM}{field}" for field in ("status", "phase", "caller", "async", "created_by")),
            *(f"{place}{field}" for place in _PLACES_OF_PARTS for field in ("annotations", "logprobs")),
            *(f"{place}prompt_cache_breakpoint" for place in _PLACES_OF_PARTS),
            *(
                f"{place}{field}"
                for place in _PLACES_OF_TOOLS
                for field in ("defer_loading", "allowed_callers", "async", "output_schema")
            ),
        }
    ),
    refused={
        "background": (False,),
        "conversation": (),
        "prompt": (),
        "moderation": (),
        "image": (),
        "context_management": ([],),
        "n": (1,),
        "stop": ([],),
        "seed": (),
        "logit_bias": ({},),
        "logprobs": (False,),
        "max_tokens": (),
        "max_completion_tokens": (),
        "messages": (),
        "min_p": (0,),
        "top_k": (),
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "repetition_penalty": (1,),
        "response_format": ({"type": "text"},),
        "reasoning_effort": (),
        "functions": ([],),
    },
)
"""Ignored: bookkeeping, and performance hints that do not change the answer. Refused: fields that would change the
answer, including names from other protocols, unless the value is one of the listed no-op values."""
