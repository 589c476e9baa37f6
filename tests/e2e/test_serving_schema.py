"""Every request is answered, whether or not it fits the server's own OpenAPI schema. Schemathesis generates the requests."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.e2e.test_serving import tiny_model
from tests.serving import Running, running, until

PATHS = ["/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics"]


@pytest.fixture(scope="module")
def server():
    with running(tiny_model(), max_rows=8, queue=250, max_tokens=40) as server:
        yield server


@pytest.fixture(scope="module")
def operations(server: Running) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


def test_every_operation_is_tried(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(PATHS)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_a_server_error(operations: dict[str, Any], server: Running, path: str, mode: Any) -> None:
    """Guards against a traceback instead of a 400, a request that is never answered, and a row that is never freed."""
    if mode == schemathesis.GenerationMode.NEGATIVE and "completions" not in path:
        return  # these accept nothing that could be wrong

    @given(case=operations[path].as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        response = case.call(timeout=60)
        assert response.status_code < 500, response.text
        if response.status_code >= 400 and path.startswith("/v1"):
            assert response.json()["error"]["message"]
        until(server.idle, "the request's row is free")

    ask()
