"""Whatever our own OpenAPI allows, and what it does not, is answered below 500: requests drawn by schemathesis."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.serve.conftest import Running

with warnings.catch_warnings():
    # schemathesis imports parts of dependencies that they have deprecated; nothing of it is ours.
    warnings.simplefilter("ignore")
    import schemathesis

EXAMPLES = 25
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health", "/metrics"]


@pytest.fixture(scope="module")
def operations(server: Running) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mode"),
    [*((path, "positive") for path in PATHS), *((path, "negative") for path in PATHS[:2])],  # the rest takes nothing
)
def test_no_request_is_answered_with_5xx(operations: dict[str, Any], server: Running, path: str, mode: str) -> None:
    assert sorted(operations) == sorted(PATHS)
    mode_of = schemathesis.GenerationMode.POSITIVE if mode == "positive" else schemathesis.GenerationMode.NEGATIVE
    statuses: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[path].as_strategy(generation_mode=mode_of))
    def ask(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body["model"] = "tiny"  # else every answer is that there is no such model
        response = case.call(timeout=60)
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text

    ask()
    assert statuses
    assert mode == "negative" or "{" in path or 200 in statuses
    assert server.until(lambda: server.health()["held"] == 0)
