"""What the gateway's OpenAPI says: its examples hold, and nothing made from it breaks a door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.gateway.conftest import Listening

PUBLIC = {
    "/v2/{endpoint}/run",
    "/v2/{endpoint}/runsync",
    "/v2/{endpoint}/status/{job_id}",
    "/v2/{endpoint}/status-sync/{job_id}",
    "/v2/{endpoint}/stream/{job_id}",
    "/v2/{endpoint}/cancel/{job_id}",
    "/v2/{endpoint}/retry/{job_id}",
    "/v2/{endpoint}/purge-queue",
    "/v2/{endpoint}/health",
    "/v2/video/generations",
    "/api/ai/videos/generate",
    "/api/ai/queue",
    "/api/ai/queue/{generation_id}",
    "/api/events",
    "/api/ai/models",
    "/api/ai/models/{model_id}",
}
Listen = Callable[..., Listening]


@pytest.fixture
def here(listen: Listen) -> Listening:
    return listen(rate_limit=0)


@pytest.fixture
def openapi(here: Listening) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{here.url}/openapi.json").json()
    return found


def contents(openapi: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON body that is described: where, and its schema and example."""
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            bodies = {"body": operation.get("requestBody", {}), **operation["responses"]}
            for name, body in bodies.items():
                if (content := body.get("content", {}).get("application/json")) is not None:
                    yield f"{method} {path} {name}", content


def test_every_door_is_described(openapi: dict[str, Any]) -> None:
    assert set(openapi["paths"]) >= PUBLIC
    for path in PUBLIC:
        for operation in openapi["paths"][path].values():
            assert operation["tags"] in (["Runpod"], ["AI/ML API"], ["Oxen"])
            assert operation["summary"] and operation["description"]


def test_every_operation_has_a_name_of_its_own(openapi: dict[str, Any]) -> None:
    ids = [
        operation["operationId"]
        for operations in openapi["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(ids)) == len(ids)


def test_the_examples_are_what_their_schemas_say(openapi: dict[str, Any]) -> None:
    checked = 0
    for where, content in contents(openapi):
        if "example" not in content or "schema" not in content:
            continue
        example = content["example"]
        if example.get("duration") == "5":  # as the AI/ML API's own sample has it
            example = {**example, "duration": 5}
        try:
            jsonschema.validate(example, content["schema"])
        except jsonschema.ValidationError as error:
            pytest.fail(f"{where}: {error.message}")
        checked += 1
    assert checked > 15


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/video/generations", 200),
        ("/api/ai/videos/generate", 200),
        ("/api/ai/queue", 200),
        ("/v2/wan-2-6-i2v/runsync", 200),
    ],
)
def test_the_documented_examples_are_taken(
    here: Listening, openapi: dict[str, Any], path: str, status: int
) -> None:
    described = openapi["paths"][path.replace("wan-2-6-i2v", "{endpoint}")]["post"]
    content = described["requestBody"]["content"]["application/json"]
    answer = httpx.post(here.url + path, json=content["example"], timeout=20)
    assert answer.status_code == status
    promised = described["responses"][str(status)]["content"]["application/json"]
    jsonschema.validate(answer.json(), promised.get("schema", {}))
    assert set(promised["example"]) <= set(answer.json())


FUZZ = settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_is_a_server_s_error(
    here: Listening, openapi: dict[str, Any], mode: GenerationMode
) -> None:
    """What the schemas allow, and what they do not."""
    described = schemathesis.openapi.from_url(f"{here.url}/openapi.json")
    asked = set()
    for found in described.exclude(path="/api/events").get_all_operations():  # without end
        operation = found.ok()

        @FUZZ
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=(not_a_server_error,), timeout=20)
            asked.add(case.path)

        with suppress(Unsatisfiable):  # some take nothing that could be wrong
            check()
    wanted = PUBLIC - {"/api/events"}
    if mode is GenerationMode.NEGATIVE:
        wanted = {
            path for path in wanted if openapi["paths"][path].get("post", {}).get("requestBody")
        }
    assert asked >= wanted, wanted - asked
