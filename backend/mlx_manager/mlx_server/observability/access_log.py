"""The access log: one line for each completed HTTP request, with its outcome and numbers. Never logs content."""

import logging

from mlx_manager.mlx_server.records import Exchange, GenerationRecord

logger = logging.getLogger("mlx_manager.access")

_PROBE_PATHS = {"/health", "/ready", "/metrics"}
_PAGE = "/ui/"
_HUMAN_NAMES = {
    "prompt_tokens": "prompt",
    "cached_tokens": "cached",
    "cache_miss": "miss",
    "missed_tokens": "missed",
    "completion_tokens": "completion",
    "reasoning_tokens": "reasoning",
    "load_seconds": "load",
    "queue_seconds": "queue",
    "time_to_first_token_seconds": "ttft",
    "finish_reason": "finish",
    "request_id": "id",
    "response_id": "response",
}


def log_access(exchange: Exchange) -> None:
    is_minor = exchange.path in _PROBE_PATHS or exchange.path.startswith(_PAGE)
    level = logging.DEBUG if is_minor else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = _fields(exchange)
    logger.log(level, "%s", _line(exchange, fields), extra={"fields": fields})


def _fields(exchange: Exchange) -> dict[str, object]:
    failure = exchange.failure
    fields: dict[str, object | None] = {
        "status": exchange.status,
        "method": exchange.method,
        "path": exchange.path,
        "endpoint": exchange.endpoint,
        "seconds": round(exchange.seconds, 4),
        **(_generation_fields(exchange.generation) if exchange.generation is not None else {}),
        "error": type(failure).__name__ if failure is not None else None,
        "key": exchange.key_name,
        "request_id": exchange.request_id,
        "response_id": exchange.response_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _generation_fields(generation: GenerationRecord) -> dict[str, object | None]:
    miss = generation.miss
    tokens = {
        "prompt_tokens": generation.prompt_tokens,
        "cached_tokens": generation.cached_tokens,
        "cache_miss": miss.reason if miss is not None else None,
        "missed_tokens": miss.missed_tokens if miss is not None and miss.missed_tokens else None,
        "completion_tokens": generation.completion_tokens,
        "reasoning_tokens": generation.reasoning_tokens if generation.reasoning_tokens else None,
    }
    return {
        "model": generation.model if generation.model else None,
        "upstream": generation.upstream,
        **(tokens if generation.prompt_tokens else {}),
        "load_seconds": _rounded(generation.load_seconds),
        "queue_seconds": _rounded(generation.queue_seconds) if generation.prefilled is not None else None,
        "time_to_first_token_seconds": _rounded(generation.time_to_first_output),
        "finish_reason": ",".join(dict.fromkeys(generation.finish_reasons)) if generation.finish_reasons else None,
    }


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 4) if seconds is not None else None


def _line(exchange: Exchange, fields: dict[str, object]) -> str:
    """`200 POST /v1/chat/completions 0.412s demo prompt=31 ...`: fixed fields, then NAME=VALUE pairs."""
    words = [str(exchange.status), f"{exchange.method:<4}", exchange.path, f"{exchange.seconds:.3f}s"]
    if "model" in fields:
        words.append(str(fields["model"]))
    for name, value in fields.items():
        if name not in ("status", "method", "path", "endpoint", "seconds", "model"):
            shown = f"{value:.3f}s" if name.endswith("_seconds") else value
            words.append(f"{_HUMAN_NAMES.get(name, name)}={shown}")
    return " ".join(words)
