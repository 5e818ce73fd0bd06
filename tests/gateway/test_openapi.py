"""What OpenAPI says is true as far as a machine can try it: no request makes a 5xx."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.gateway.conftest import Listening

_EXAMPLES = 20


def test_every_door_is_described_with_its_example(listen: Callable[..., Listening]) -> None:
    document = httpx.get(f"{listen().url}/openapi.json").json()
    run = document["paths"]["/v2/{endpoint}/run"]["post"]
    body = run["requestBody"]["content"]["application/json"]
    assert body["example"]["input"]["prompt"] and body["schema"]["required"] == ["input"]
    assert set(run["responses"]) >= {"200", "400", "401", "404", "413", "429"}
    assert document["components"]["securitySchemes"] and run["security"]


def test_no_request_makes_a_server_error(listen: Callable[..., Listening], tmp_path: Path) -> None:
    """schemathesis, with requests that the document allows and with such as it does not."""
    listening = listen(rate_limit=0)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run"),
            f"{listening.url}/openapi.json",
            *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing"),
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
    assert "/v2/{endpoint}/runsync" in done.stdout or "No issues found" in done.stdout
