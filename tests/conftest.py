"""What tests share: one running server on the demo model and a babbling one, and in-process pools."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.running_server import RunningServer, running_server
from tests.small_models import make_random_llama

settings.register_profile("house", deadline=None)  # a busy machine is no defect
settings.load_profile("house")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model, id `babbler`, that generates until its limit."""
    return make_random_llama(tmp_path_factory.mktemp("models") / "babbler")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, babbler: Path) -> Iterator[RunningServer]:
    """A server that no test may harm, with `demo`, `babbler`, and `short`.

    `short` has no chat template, a context of 32 tokens, and a generation_config: greedy, 7 tokens.
    """
    short = make_random_llama(
        tmp_path_factory.mktemp("models") / "short",
        context_length=32,
        chat_template=False,
        do_sample=False,
        max_new_tokens=7,
    )
    with running_server(tmp_path_factory.mktemp("server"), available_models=f"{babbler},{short}") as running:
        yield running
