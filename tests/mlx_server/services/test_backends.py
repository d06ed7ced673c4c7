"""The one catalogue of this machine's models and of upstreams', over a real pool and a staged upstream."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mlx_manager.mlx_server.errors import ModelNotFound
from mlx_manager.mlx_server.folding import fold
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry
from mlx_manager.mlx_server.protocols.completions import to_request
from mlx_manager.mlx_server.schemas.openai import CompletionRequest
from mlx_manager.mlx_server.services.backends import Backends
from mlx_manager.mlx_server.services.inference import InferenceService
from mlx_manager.mlx_server.services.prompts import PromptRules
from mlx_manager.mlx_server.services.upstreams.registry import Upstreams
from mlx_manager.mlx_server.upstream_settings import UpstreamSettings
from tests import faulty_upstream as faulty
from tests.pools import pool_over

pytestmark = pytest.mark.anyio

WELL = faulty.Answer((faulty.piece("Hello you", finish_reason="stop"), faulty.DONE))


class WatchedCatalog(Catalog):
    """Remembers the names that it was asked for."""

    def find(self, name: str) -> ModelEntry | None:
        self.asked = [*getattr(self, "asked", []), name]
        return super().find(name)


@contextlib.asynccontextmanager
async def backends_of(catalog: Catalog, aliases: dict[str, str]) -> AsyncIterator[Backends]:
    """With an upstream `lab` that has `lab/well`, as far as it is asked."""
    with faulty.faulty_upstream({"well": WELL}) as upstream:
        lab = UpstreamSettings(name="lab", kind="openai", base_url=upstream.url, models=["well"], prefix="lab/")
        upstreams = Upstreams([lab])
        async with pool_over(catalog) as pool:
            yield Backends(pool, upstreams, {}, aliases, PromptRules())
        await upstreams.aclose()


@pytest.mark.parametrize("name", ["best", "babbler", "lab/well"])
async def test_the_name_of_a_request_is_looked_up_once(babbler: Path, name: str) -> None:
    """Though unknown names may be downloads, or go to the default model: ids of upstreams are neither."""
    catalog = WatchedCatalog(
        "demo",
        [],
        models=[ModelSettings(id="babbling", path=babbler, aliases=["best", "babbler"])],
        allow_downloads=True,
        default_for_unknown=True,
    )
    async with backends_of(catalog, {}) as backends:
        service = InferenceService(backends, 60)
        request = to_request(CompletionRequest.model_validate({"model": name, "prompt": "Hi", "max_tokens": 3}))
        catalog.asked = []
        generation = await fold(service.generate(request))
    assert catalog.asked.count(name) == 1
    assert request.record.model == ("lab/well" if name == "lab/well" else "babbling")
    assert generation.choices[0].text


async def test_a_name_that_nobody_has_is_an_alias_then_a_download_then_the_default_models(babbler: Path) -> None:
    aliases = {"claude-*": "lab/well", "gpt-*": "babbler", "best-*": "claude-9"}
    async with backends_of(Catalog(str(babbler), [], default_for_unknown=True), aliases) as backends:
        names = ["lab/well", "claude-9", "gpt-9", "best-9", "org/model"]
        assert [(await backends.resolve(name)).id for name in names] == [
            "lab/well",
            "lab/well",
            "babbler",
            "babbler",  # an alias of an alias is not followed
            "babbler",
        ]
    async with backends_of(Catalog(str(babbler), [], allow_downloads=True), aliases) as backends:
        assert (await backends.resolve("org/model")).id == "org/model"
        with pytest.raises(ModelNotFound, match="Did you mean: lab/well"):
            await backends.resolve("wellness")


async def test_every_model_is_listed_once(babbler: Path) -> None:
    with faulty.faulty_upstream({}) as upstream:
        lab = UpstreamSettings(name="lab", kind="openai", base_url=upstream.url, models=["babbler", "well"])
        upstreams = Upstreams([lab, lab.model_copy(update={"name": "other"})])
        async with pool_over(Catalog(str(babbler), [])) as pool:
            backends = Backends(pool, upstreams, {}, {}, PromptRules())
            assert [backend.id for backend in backends] == ["babbler", "demo", "well"]
        await upstreams.aclose()
