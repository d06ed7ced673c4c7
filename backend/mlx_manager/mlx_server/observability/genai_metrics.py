"""OpenTelemetry's GenAI metrics of a generation, for LogFire and any collector.

https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-metrics.md defines names,
attributes and buckets. Nothing is measured without a collector.
"""

from collections.abc import Sequence

from opentelemetry import metrics
from opentelemetry.metrics import Histogram

from mlx_manager.mlx_server import __version__
from mlx_manager.mlx_server.records import GenerationRecord

_TOKENS = [4**i for i in range(14)]
_DURATIONS = [0.01 * 2**i for i in range(14)]
_FIRST_TOKEN = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_PER_TOKEN = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]

_meter = metrics.get_meter("mlx-manager", __version__)


def _histogram(name: str, unit: str, description: str, buckets: Sequence[float]) -> Histogram:
    return _meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)


_token_usage = _histogram("gen_ai.client.token.usage", "{token}", "Number of prompt and completion tokens", _TOKENS)
_operation_duration = _histogram("gen_ai.client.operation.duration", "s", "Duration of requests", _DURATIONS)
_request_duration = _histogram("gen_ai.server.request.duration", "s", "Duration of requests", _DURATIONS)
_time_to_first_token = _histogram("gen_ai.server.time_to_first_token", "s", "Time to the first token", _FIRST_TOKEN)
_time_per_output_token = _histogram(
    "gen_ai.server.time_per_output_token", "s", "Time per output token after the first", _PER_TOKEN
)


def record_generation(operation: str, record: GenerationRecord) -> None:
    """Records an ended generation. The model label is bounded: only models that answered have records."""
    attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "mlx"}
    if record.model:
        attributes |= {"gen_ai.request.model": record.model, "gen_ai.response.model": record.model}
    for kind, tokens in (("input", record.prompt_tokens), ("output", record.completion_tokens)):
        if tokens:
            _token_usage.record(tokens, {**attributes, "gen_ai.token.type": kind})
    if record.time_to_first_output is not None:
        _time_to_first_token.record(record.time_to_first_output, attributes)
    if record.seconds_per_token is not None:
        _time_per_output_token.record(record.seconds_per_token, attributes)
    if record.ended is not None:
        if record.error is not None:
            attributes["error.type"] = type(record.error).__name__
        for histogram in (_operation_duration, _request_duration):
            histogram.record(record.ended - record.began, attributes)
