"""Labels stay few, however many models there are; a histogram's buckets hold what was put in."""

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from mlx_manager.mlx_server.observability.histograms import Histogram
from mlx_manager.mlx_server.observability.metrics import MAX_MODELS, Metrics, exposition
from mlx_manager.mlx_server.observability.readings import ModelReading, ServerReading
from mlx_manager.mlx_server.records import Exchange, GenerationRecord


def samples(families: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels, as Prometheus reads them."""
    text, _ = exposition(families, "")
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, *(sample.labels[label] for label in sorted(sample.labels))] = sample.value
    return found


def ended(model: str) -> Exchange:
    exchange = Exchange("id", "POST", "/", status=200, generation=GenerationRecord(model=model))
    exchange.ended = exchange.began + 1
    return exchange


def test_models_beyond_the_hundredth_share_a_label() -> None:
    metrics = Metrics(lambda model_id: True)
    for number in range(3 * MAX_MODELS):
        metrics.exchange_ended(ended(f"model-{number}"))
        metrics.worker_died(f"model-{number}")
    reading = ServerReading(
        models=[ModelReading(f"model-{number}", waiting_sequences=2) for number in (0, 200, 201)],
        processes=[],
        upstreams={},
        models_loaded=3,
        budget_bytes=1,
        budget_used_bytes=1,
        draining=False,
    )
    found = samples(metrics.families(reading))
    assert found["mlx_server_worker_restarts_total", "other"] == 2 * MAX_MODELS
    assert found["mlx_server_worker_restarts_total", "model-99"] == 1
    assert len([key for key in found if key[0] == "mlx_server_requests_total"]) == MAX_MODELS + 1
    waiting = {key[1]: value for key, value in found.items() if key[0] == "mlx_server_waiting_sequences"}
    assert waiting == {"model-0": 2, "other": 4}


def test_ids_that_are_no_models_share_a_label() -> None:
    metrics = Metrics(lambda model_id: model_id == "known")
    for model in ("unknown", "", "known", "another"):
        metrics.exchange_ended(ended(model))
    found = samples(metrics.families(None))
    assert found["mlx_server_requests_total", "other", "known", "200"] == 1
    assert found["mlx_server_requests_total", "other", "other", "200"] == 3


def test_a_histogram_takes_many_values_at_once() -> None:
    histogram = Histogram("seconds", "Of things.", ("kind",), (0.1, 1.0))
    histogram.observe(("a",), [0.05, 0.1, 0.5, 7.0])
    histogram.observe(("a",), [2.0])
    histogram.observe(("b",), [])
    found = samples(histogram.collect())
    assert {key[2]: value for key, value in found.items() if key[:2] == ("seconds_bucket", "a")} == {
        "0.1": 2,
        "1.0": 3,
        "+Inf": 5,
    }
    assert (found["seconds_count", "a"], round(found["seconds_sum", "a"], 6)) == (5, 9.65)
    assert (found["seconds_count", "b"], found["seconds_sum", "b"]) == (0, 0)
