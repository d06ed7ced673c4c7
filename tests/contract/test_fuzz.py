"""Our own OpenAPI, fuzzed: whatever a client sends, no answer is a failure of the server."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case

from mlx_manager.mlx_server.config import MLXServerSettings
from mlx_manager.mlx_server.main import create_app
from tests.running_server import RunningServer

LIMITS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}
ENVELOPE, ANTHROPICS = {"message", "type", "param", "code"}, {"message", "type"}
schema = schemathesis.openapi.from_dict(create_app(MLXServerSettings(logfire_enabled=False)).openapi())


@schema.parametrize()
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_server_fail(case: Case[Any], server: RunningServer) -> None:
    if case.path in LIMITS and isinstance(case.body, dict):
        case.body |= {"model": "babbler", LIMITS[case.path]: 1}  # a model that is there, and an answer that ends
    response = case.call(base_url=server.url)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        fields = ANTHROPICS if case.path.startswith("/v1/messages") else ENVELOPE
        assert set(response.json()["error"]) == fields
