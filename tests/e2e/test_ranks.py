"""One model over two processes of this machine. `make test-ranks` has the tests that take longer."""

from pathlib import Path

import httpx

from tests.running_server import RunningServer, running_server

BODY = {"model": "babbler", "prompt": "x", "temperature": 1, "seed": 8, "max_tokens": 4}


def test_model_over_two_ranks_answers_as_in_one_process(server: RunningServer, tmp_path: Path, babbler: Path) -> None:
    alone = server.post("/v1/completions", BODY).json()
    with running_server(tmp_path, default_model=babbler, ranks=2) as group:
        assert len(group.workers()) == 2
        together = group.post("/v1/completions", BODY).json()
        pool = httpx.get(f"{group.url}/admin/pool").json()
    assert together["choices"] == alone["choices"]
    (model,) = [model for model in pool["models"] if model["state"] == "loaded"]
    assert [rank["rank"] for rank in model["ranks"]] == [0, 1]
    assert all(rank["memory_bytes"] > 10**5 for rank in model["ranks"])
