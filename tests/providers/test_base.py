"""What both providers share: addresses, health checks, detection, and every way that a server can answer badly."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mlx_manager.providers import (
    LlamaCppClient,
    LlamaCppSettings,
    MlxLmClient,
    MlxLmSettings,
    ModelError,
    ProviderHealthStatus,
    create_llamacpp_model_async,
    create_mlxlm_model_async,
    detect_llamacpp_model,
    detect_mlxlm_model,
    llamacpp_health_check,
    mlxlm_health_check,
)
from tests.faulty_upstream import NO_MODELS
from tests.providers.stand_in import HEALTHY, LOADING, MODELS, Drip, Reply, Route, Silence, stand_in

pytestmark = pytest.mark.anyio

MODEL_ID = MODELS["data"][0]["id"]  # type: ignore[index]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens


@dataclass(frozen=True)
class Kind:
    name: str
    settings: type[LlamaCppSettings | MlxLmSettings]
    detect: Callable[..., Awaitable[str | None]]
    health_check: Callable[..., Awaitable[ProviderHealthStatus]]
    create: Callable[..., Awaitable[Any]]


LLAMACPP = Kind("llamacpp", LlamaCppSettings, detect_llamacpp_model, llamacpp_health_check, create_llamacpp_model_async)
MLXLM = Kind("mlxlm", MlxLmSettings, detect_mlxlm_model, mlxlm_health_check, create_mlxlm_model_async)
both = pytest.mark.parametrize("kind", [LLAMACPP, MLXLM], ids=lambda kind: kind.name)

HEALTH: dict[str, Route] = {"/health": Reply(HEALTHY)}
WELL: dict[str, Route] = {**HEALTH, "/v1/models": Reply(MODELS)}


@both
async def test_healthy_server_is_connected_with_its_model(kind: Kind) -> None:
    with stand_in(WELL) as server:
        status = await kind.health_check(kind.settings(base_url=f"{server.url}/v1"))
    assert status == ProviderHealthStatus(
        connected=True,
        model_detected=True,
        model_id=MODEL_ID,
        base_url=f"{server.url}/v1",
        provider_type=kind.name,
        metadata={"status": "ok", "models": [MODEL_ID], "selected": "only one listed"},
        error=None,
    )
    assert server.paths == ["/health", "/v1/models"]


@both
@pytest.mark.parametrize("body", ["OK", "ok\n", "", HEALTHY])
async def test_health_may_be_plain_text(kind: Kind, body: object) -> None:
    with stand_in({**WELL, "/health": Reply(body)}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.metadata["status"], status.model_id) == (True, "ok", MODEL_ID)


@both
async def test_server_without_health_is_connected_when_it_lists_models(kind: Kind) -> None:
    with stand_in({"/v1/models": Reply(MODELS)}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.model_id, status.error) == (True, MODEL_ID, None)


@both
async def test_server_with_neither_is_not_connected(kind: Kind) -> None:
    with stand_in({}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.model_detected) == (False, False)
    assert "/v1/models answered 404: File Not Found" in str(status.error)


@both
async def test_loading_server_is_connected_without_a_model(kind: Kind) -> None:
    with stand_in({**WELL, "/health": Reply(LOADING, status=503)}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.model_detected, status.model_id, status.error) == (True, False, None, None)
    assert status.metadata == {"status": "loading model"}


@both
async def test_other_503_is_an_error(kind: Kind) -> None:
    with stand_in({**WELL, "/health": Reply({"status": "unavailable"}, status=503)}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.model_detected) == (False, False)
    assert str(status.error).endswith("/health answered 503: unavailable. Check its log.")


@both
async def test_nobody_there_is_reported_with_the_remedy_and_not_raised(kind: Kind) -> None:
    status = await kind.health_check(kind.settings(base_url=NOBODY))
    assert (status.connected, status.model_detected, status.base_url) == (False, False, NOBODY)
    assert f"{NOBODY}/health cannot be reached" in str(status.error)
    assert f"{kind.name.upper()}_BASE_URL" in str(status.error)


@both
@pytest.mark.parametrize("name", ["TIMEOUT", "BASE_URL"])
async def test_health_check_does_not_raise_for_an_environment_of_nonsense(
    kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{kind.name.upper()}_{name}", "nonsense")
    status = await kind.health_check()
    assert not status.connected
    assert status.error is not None


@both
async def test_connection_that_the_server_dropped_is_made_anew(kind: Kind) -> None:
    with stand_in(WELL, drops_kept=True) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.model_id, status.error) == (MODEL_ID, None)
    assert len(server.connections) == 2


@both
async def test_entries_that_name_no_model_are_left_out(kind: Kind) -> None:
    entries = [*NO_MODELS, *MODELS["data"]]
    with stand_in({"/v1/models": Reply({"data": entries})}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.metadata["models"], status.error) == ([MODEL_ID], None)


@both
async def test_list_of_null_is_a_server_without_models(kind: Kind) -> None:
    with stand_in({"/v1/models": Reply({"object": "list", "data": None})}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.metadata["selected"], status.error) == (True, "none listed", None)


FAULTS: dict[str, tuple[Reply, int | None, str]] = {
    "redirect": (Reply("", 307, {"Location": "/elsewhere"}), 307, "answered 307, a redirect to /elsewhere"),
    "not JSON": (Reply("<html>hello</html>"), 200, "did not answer with JSON: '<html>hello</html>'"),
    "deep JSON": (Reply("[" * 100_000), 200, "did not answer with JSON"),
    "not UTF-8": (Reply(b'{"data": "\xff"}'), 200, "did not answer with JSON"),
    "nothing": (Reply(""), 200, "returned an empty body"),
    "cut JSON": (Reply('{"data": [{"id'), 200, "did not answer with JSON"),
    "cut reply": (Reply(MODELS, missing_bytes=100), None, "closed the connection in its reply"),
    "no list": (Reply({"data": 7}), 200, "did not answer with a list of models: {'data': 7}"),
    "a list": (Reply([]), 200, "did not answer with a list of models: []"),
    "no ids": (Reply({"data": [{"name": "x"}]}), 200, "did not answer with a list of models"),
    "error": (Reply({"error": {"message": "no such luck"}}, 500), 500, "answered 500: no such luck"),
    "error text": (Reply({"error": "no luck"}, 500), 500, "answered 500: no luck"),
    "error page": (Reply("", 502), 502, "answered 502: Bad Gateway"),
    "key": (Reply({"error": {"message": "Invalid API Key"}}, 401), 401, "answered 401: Invalid API Key. Set "),
}


@both
@pytest.mark.parametrize("fault", FAULTS)
async def test_bad_answers_to_detection_raise_with_url_and_status(kind: Kind, fault: str) -> None:
    reply, status, said = FAULTS[fault]
    with stand_in({**HEALTH, "/v1/models": reply}) as server:
        with pytest.raises(ModelError) as raised:
            await kind.detect(server.url)
        health = await kind.health_check(kind.settings(base_url=server.url))
    assert said in raised.value.message
    assert raised.value.details == {"url": f"{server.url}/v1/models", "status": status}
    assert (health.connected, health.model_detected) == (True, False)
    assert said in str(health.error)


@both
@pytest.mark.parametrize("route", [Silence(), Drip()], ids=["silence", "one byte at a time"])
async def test_answer_that_never_ends_is_given_up_in_time(kind: Kind, route: Route) -> None:
    with stand_in({"/health": route, "/v1/models": route}) as server:
        with pytest.raises(ModelError, match=r"did not answer within 0\.1 s") as raised:
            await kind.detect(server.url, timeout=0.1)
        status = await kind.health_check(kind.settings(base_url=server.url, timeout=0.1))
    assert raised.value.details == {"url": f"{server.url}/v1/models", "status": None}
    assert f"{kind.name.upper()}_TIMEOUT" in str(status.error)


@both
async def test_detection_and_creation_raise_when_nobody_is_there(kind: Kind) -> None:
    with pytest.raises(ModelError, match="cannot be reached") as raised:
        await kind.detect(NOBODY)
    assert raised.value.details == {"url": f"{NOBODY}/v1/models", "status": None}
    with pytest.raises(ModelError, match="cannot be reached") as raised:
        await kind.create(settings=kind.settings(base_url=NOBODY))
    assert raised.value.details == {"url": f"{NOBODY}/health", "status": None}
    assert raised.value.model_name is None
    with pytest.raises(ModelError) as raised:
        await kind.create("named", kind.settings(base_url=NOBODY))
    assert raised.value.model_name == "named"


@both
async def test_empty_list_is_no_model_and_a_warning(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with (
        stand_in({**HEALTH, "/v1/models": Reply({"object": "list", "data": []})}) as server,
        caplog.at_level("WARNING"),
    ):
        assert await kind.detect(server.url) is None
        assert "lists no models" in caplog.text
        status = await kind.health_check(kind.settings(base_url=server.url))
    assert (status.connected, status.model_detected, status.model_id, status.error) == (True, False, None, None)
    assert status.metadata["selected"] == "none listed"


@both
async def test_configured_model_is_preferred_where_it_is_listed(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listed = Reply({"data": [{"id": "first"}, {"id": "second"}]})
    with stand_in({**HEALTH, "/v1/models": listed}) as server:
        status = await kind.health_check(kind.settings(base_url=server.url, model_name="second"))
        assert (status.model_id, status.metadata["selected"]) == ("second", "configured")
        status = await kind.health_check(kind.settings(base_url=server.url, model_name="third"))
        assert (status.model_id, status.metadata["selected"]) == ("first", "first listed")
        monkeypatch.setenv(f"{kind.name.upper()}_MODEL_NAME", "second")
        assert await kind.detect(server.url) == "second"
        monkeypatch.setenv(f"{kind.name.upper()}_MODEL_NAME", "third")
        assert await kind.detect(server.url) == "first"
    assert "does not list the configured model third. Using first." in caplog.text


@both
async def test_guess_among_several_models_is_warned_of(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    listed = Reply({"data": [{"id": "first"}, {"id": "second"}]})
    with stand_in({"/v1/models": listed}) as server, caplog.at_level("WARNING"):
        assert await kind.detect(server.url) == "first"
    assert f"{kind.name.upper()}_MODEL_NAME to choose another" in caplog.text


@both
@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1//"])
async def test_base_url_may_end_in_v1_and_slashes_or_not(kind: Kind, suffix: str) -> None:
    with stand_in(WELL) as server:
        assert await kind.detect(f" {server.url}{suffix}") == MODEL_ID
    assert server.paths == ["/v1/models"]


@both
@pytest.mark.parametrize("suffix", ["", "/v1"])
async def test_v1_elsewhere_in_the_path_is_left_alone(kind: Kind, suffix: str) -> None:
    with stand_in({"/v1/proxy/v1/models": Reply(MODELS)}) as server:
        assert await kind.detect(f"{server.url}/v1/proxy{suffix}") == MODEL_ID


@pytest.mark.parametrize(
    ("base_url", "root"),
    [
        ("http://v1", "http://v1"),
        ("http://v1/v1", "http://v1"),
        ("https://api/v1.example:8080/v1/", "https://api/v1.example:8080"),
        ("http://host/v10", "http://host/v10"),
        ("http://host/notv1", "http://host/notv1"),
        ("http://host/v1/v1", "http://host/v1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
    ],
)
async def test_v1_is_taken_off_the_end_of_the_path_only(base_url: str, root: str) -> None:
    async with LlamaCppClient(base_url) as llamacpp, MlxLmClient(MlxLmSettings(base_url=base_url)) as mlxlm:
        assert llamacpp.base_url == root
        assert mlxlm.base_url == f"{root}/v1"


@both
@pytest.mark.parametrize("base_url", ["localhost:8080", "", "ftp://host", "http://", "http://host:port", "http://[::1"])
async def test_what_is_no_address_is_refused_with_the_value(kind: Kind, base_url: str) -> None:
    with pytest.raises(ModelError, match="is not the address of a server") as raised:
        await kind.detect(base_url)
    assert raised.value.details["url"] == base_url
    assert not (await kind.health_check(kind.settings(base_url=base_url))).connected


@both
async def test_timeout_that_is_no_time_raises_model_error(kind: Kind) -> None:
    with pytest.raises(ModelError, match="timeout: Input should be greater than 0"):
        await kind.detect(NOBODY, timeout=0)


@both
async def test_key_is_sent_and_stands_in_no_log_and_no_error(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with stand_in({**HEALTH, "/v1/models": Reply({}, 401)}) as server, caplog.at_level(logging.DEBUG):
        settings = kind.settings.model_validate({"api_key": "sesame", "base_url": server.url})
        status = await kind.health_check(settings)
        with pytest.raises(ModelError) as raised:
            await kind.create(settings=settings)
    assert {key for _, key in server.requests} == {"Bearer sesame"}
    assert "sesame" not in f"{status}{raised.value}{raised.value.details}{caplog.text}"


@both
async def test_password_in_an_address_is_refused_and_not_shown(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    address = "http://me:hunter2@127.0.0.1:9/v1"
    with caplog.at_level(logging.DEBUG), pytest.raises(ModelError, match="use an API key") as raised:
        await kind.detect(address)
    status = await kind.health_check(kind.settings(base_url=address))
    assert (status.connected, status.base_url) == (False, "http://127.0.0.1:9/v1")
    assert "hunter2" not in f"{status}{raised.value}{raised.value.details}{caplog.text}"


async def test_client_reuses_one_pool_of_connections_and_closes_it() -> None:
    with stand_in(WELL) as server:
        async with LlamaCppClient(server.url) as client:
            assert await client.is_running()
            assert await client.is_model_loaded()
            assert await client.list_models() == MODELS["data"]
            assert len(server.connections) == 1
        assert not await client.is_running()
        with pytest.raises(ModelError, match="could not be queried"):
            await client.list_models()


def test_client_of_an_event_loop_that_is_gone_does_not_raise() -> None:
    with stand_in(WELL) as server:
        client = LlamaCppClient(server.url)

        async def ask_and_close() -> bool:
            async with client:
                return await client.is_running()

        assert asyncio.run(ask_and_close())
        assert not asyncio.run(client.is_running())


@pytest.mark.parametrize("make", [LlamaCppClient, lambda url: MlxLmClient(MlxLmSettings(base_url=url))])
async def test_asking_whether_it_runs_never_raises(make: Callable[[str], LlamaCppClient | MlxLmClient]) -> None:
    async with make(NOBODY) as nobody:
        assert not await nobody.is_running()
        assert not await nobody.is_model_loaded()
    with stand_in({**WELL, "/health": Reply(LOADING, 503)}) as server:
        async with make(server.url) as loading:
            assert await loading.is_running()
            assert not await loading.is_model_loaded()
    with stand_in({**HEALTH, "/v1/models": Reply({"data": []})}) as server:
        async with make(server.url) as empty:
            assert await empty.is_running()
            assert not await empty.is_model_loaded()
