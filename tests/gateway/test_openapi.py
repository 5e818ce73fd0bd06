"""The gateway's OpenAPI: its examples are valid, and no request made from it causes a server
error."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.gateway.conftest import Listening, wish
from tests.media.test_stills import small_clip

_EXAMPLES = 20
SYNTHESIS = "services/aigc/video-generation/video-synthesis"
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
    "/v1/models",
    "/api/ai/generations",
    "/api/ai/generations/{generation_id}",
    "/api/ai/models/search",
    "/api/ai/models/featured",
    "/api/ai/models/favorites",
    "/api/ai/videos/generate",
    "/api/ai/queue",
    "/api/ai/queue/{generation_id}",
    "/api/events",
    "/api/ai/models",
    "/api/ai/models/{model_id}",
    f"/api/v1/{SYNTHESIS}",
    "/api/v1/tasks",
    "/api/v1/tasks/{task_id}",
    "/api/v1/tasks/{task_id}/cancel",
    "/v1/videos",
    "/v1/videos/sync",
    "/v1/videos/{video_id}",
    "/v1/videos/{video_id}/content",
}
TAGS = ("Runpod", "AI/ML API", "Oxen", "DashScope", "OpenAI")
Listen = Callable[..., Listening]


@pytest.fixture
def here(listen: Listen) -> Listening:
    return listen(rate_limit=0)


@pytest.fixture
def openapi(here: Listening) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{here.url}/openapi.json").json()
    return found


def contents(openapi: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every described JSON body: its place, its schema and its example."""
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
            (tag,) = operation["tags"]
            assert tag in TAGS
            assert operation["summary"] and operation["description"]
            assert operation["security"] and "422" not in operation["responses"]
    assert "HTTPValidationError" not in str(openapi)
    assert openapi["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"


def test_every_operation_has_a_unique_name(openapi: dict[str, Any]) -> None:
    ids = [
        operation["operationId"]
        for operations in openapi["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(ids)) == len(ids)


def test_the_examples_match_their_schemas(openapi: dict[str, Any]) -> None:
    checked = 0
    for where, content in contents(openapi):
        if "example" not in content or "schema" not in content:
            continue
        try:
            jsonschema.validate(content["example"], content["schema"])
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
        (f"/api/v1/{SYNTHESIS}", 200),
        ("/v1/videos", 200),
    ],
)
def test_the_documented_examples_are_accepted(
    here: Listening, openapi: dict[str, Any], path: str, status: int
) -> None:
    described = openapi["paths"][path.replace("wan-2-6-i2v", "{endpoint}")]["post"]
    content = described["requestBody"]["content"]["application/json"]
    headers = {"X-DashScope-Async": "enable"}  # the operation requires it
    answer = httpx.post(here.url + path, json=content["example"], headers=headers, timeout=20)
    assert answer.status_code == status
    promised = described["responses"][str(status)]["content"]["application/json"]
    jsonschema.validate(answer.json(), promised.get("schema", {}))
    assert set(promised["example"]) <= set(answer.json())


def test_every_runpod_endpoint_s_input_is_described(openapi: dict[str, Any]) -> None:
    for operation in ("run", "runsync"):
        body = openapi["paths"]["/v2/{endpoint}/" + operation]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]["properties"]["input"]
        needed = {one["title"]: one["required"] for one in schema["anyOf"]}
        assert needed == {
            "wan-2-6-i2v input": ["prompt", "image"],
            "wan-2-6-r2v input": ["prompt", "references"],
            "wan-2-6-t2v input": ["prompt"],
        }


def test_every_answer_of_the_runpod_door_matches_its_description(
    here: Listening, openapi: dict[str, Any]
) -> None:
    base = f"{here.url}/v2/wan-2-6-i2v"
    fine = {"input": wish()}
    done = httpx.post(f"{base}/runsync", json=fine).json()["id"]
    fails = {"input": wish(prompt="fail:encode_failed:no")}
    failed = httpx.post(f"{base}/runsync", json=fails).json()["id"]
    waits = {"input": wish(prompt="hang")}
    running = httpx.post(f"{base}/run", json=waits).json()["id"]
    for method, path, job_id, body, status in (
        ("post", "/run", "", fine, 200),
        ("post", "/run", "", {}, 400),
        ("post", "/runsync", "", {}, 400),
        ("post", "/runsync", "", {"input": {}}, 400),
        ("get", "/status/{job_id}", done, None, 200),
        ("get", "/status/{job_id}", "none", None, 404),
        ("get", "/status-sync/{job_id}", done, None, 200),
        ("get", "/stream/{job_id}", done, None, 200),
        ("get", "/stream/{job_id}", "none", None, 404),
        ("post", "/cancel/{job_id}", running, None, 200),
        ("post", "/cancel/{job_id}", "none", None, 404),
        ("post", "/retry/{job_id}", failed, None, 200),
        ("post", "/retry/{job_id}", done, None, 400),
        ("post", "/retry/{job_id}", "none", None, 404),
        ("post", "/purge-queue", "", None, 200),
        ("get", "/health", "", None, 200),
    ):
        answer = httpx.request(method, base + path.format(job_id=job_id), json=body)
        assert answer.status_code == status, path
        described = openapi["paths"]["/v2/{endpoint}" + path][method]["responses"][str(status)]
        content = described["content"]["application/json"]
        jsonschema.validate(answer.json(), content["schema"])
        assert set(content["example"]) <= set(answer.json()), (path, status)
    for path in ("/v2/{endpoint}/health", "/v2/{endpoint}/purge-queue"):
        (operation,) = openapi["paths"][path].values()
        assert set(operation["responses"]) >= {"401", "404", "429"}


def test_required_fields_are_described_as_required(openapi: dict[str, Any]) -> None:
    poll = openapi["paths"]["/v2/video/generations"]["get"]
    (generation_id,) = poll["parameters"]
    assert generation_id["name"] == "generation_id" and generation_id["required"]
    assert generation_id["schema"]["type"] == "string"


@pytest.mark.system
@pytest.mark.parametrize("phases", ["examples,fuzzing", "coverage"])
def test_no_request_makes_a_server_error(here: Listening, tmp_path: Path, phases: str) -> None:
    """Runs schemathesis, with requests that the document allows and requests that it does not:
    random ones, and ones at the limits of every field. The latter take half a minute."""
    here.backend.clip = small_clip(tmp_path / "small.mp4").read_bytes()  # it has pictures
    runpod = f"{here.url}/v2/wan-2-6-i2v"
    job_id = httpx.post(f"{runpod}/run", json={"input": wish()}).json()["id"]
    ox = {"model": "wan-v2-6-image-to-video", "prompt": "x", "input_image": "https://example.com"}
    queued = httpx.post(f"{here.url}/api/ai/queue", json=ox).json()["generations"][0]
    video = httpx.post(f"{here.url}/v1/videos", json={"prompt": "x"}).json()
    asks = {"X-DashScope-Async": "enable"}
    wan = {"model": "wan2.6-i2v", "input": {"img_url": "https://example.com"}}
    task = httpx.post(f"{here.url}/api/v1/{SYNTHESIS}", json=wan, headers=asks).json()["output"]
    (tmp_path / "schemathesis.toml").write_text(
        "[parameters]\n"
        '"path.endpoint" = "wan-2-6-i2v"\n'
        f'"path.job_id" = "{job_id}"\n'
        f'"path.generation_id" = "{queued["generation_id"]}"\n'
        f'"path.task_id" = "{task["task_id"]}"\n'
        f'"path.video_id" = "{video["id"]}"\n'
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"{here.url}/openapi.json",
            *("--exclude-path", "/api/events"),  # never ends
            *("--checks", "not_a_server_error", "--phases", phases),
            *("--mode", "all", "--max-examples", str(_EXAMPLES), "--seed", "1"),
            *("--generation-deterministic", "--no-color"),
            *("--request-timeout", "20", "--suppress-health-check", "all"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    accepted = httpx.get(f"{here.url}/metrics").text
    for door in ("runpod", "aiml", "oxen", "dashscope", "openai"):  # requests did reach the doors
        found = re.search(f'wan_jobs_accepted_total{{door="{door}"}} ([0-9.]+)', accepted)
        assert found and float(found[1]) > 0, door
