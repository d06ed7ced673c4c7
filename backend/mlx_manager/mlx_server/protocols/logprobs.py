"""Encodes logprobs for Chat Completions and Responses (one format) and for Completions. Pure."""

from mlx_manager.mlx_server.protocols.wire import JsonObject
from mlx_manager.mlx_server.types import Logprobs, TokenLogprob, TopLogprob


def chat_logprobs(logprobs: Logprobs) -> JsonObject:
    return {"content": token_logprobs(logprobs), "refusal": None}


def token_logprobs(logprobs: Logprobs) -> list[JsonObject]:
    return [{**_token(entry), "top_logprobs": [_token(top) for top in entry.top]} for entry in logprobs]


def completion_logprobs(logprobs: Logprobs) -> JsonObject:
    return {
        "tokens": [entry.token for entry in logprobs],
        "token_logprobs": [entry.logprob if entry.predicted else None for entry in logprobs],
        "top_logprobs": [_likeliest(entry) if entry.predicted else None for entry in logprobs],
        "text_offset": [entry.offset for entry in logprobs],
    }


def _token(entry: TopLogprob) -> JsonObject:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": list(entry.bytes)}


def _likeliest(entry: TokenLogprob) -> dict[str, float]:
    """The top logprobs; the chosen token is always included."""
    return {top.token: top.logprob for top in entry.top} | {entry.token: entry.logprob}
