"""What `GET /metrics` says, read with Prometheus' own parser."""

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.running_server import RunningServer


@dataclass(frozen=True)
class Scrape:
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Of the `mlx_server_` sample with exactly these labels; 0 where there is none."""
        return self.samples.get((f"mlx_server_{name}", frozenset(labels.items())), 0.0)

    def labels(self, label: str) -> set[str]:
        """All values that the label has."""
        return {value for _, labels in self.samples for name, value in labels if name == label}


def scrape(server: RunningServer) -> Scrape:
    response = httpx.get(f"{server.url}/metrics")
    assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return Scrape(samples)
