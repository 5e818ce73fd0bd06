"""The sample clients of the hosted APIs' pages and Runpod's own JavaScript client, unchanged except
for host and key, against a local gateway.

The samples are in `tests/data/clients`, as their pages show them.
"""

from __future__ import annotations

import ast
import datetime
import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.services.instant import CLIP
from tests.gateway.conftest import Listening
from wan_engine.gateway.keys import new_entry

README = Path(__file__).parents[2] / "README.md"
SAMPLES = Path(__file__).parents[1] / "data" / "clients"
NODE_PACKAGES = Path(__file__).parents[1] / "system" / "node_modules"
KEY, ENTRY = new_entry("ann")
SECONDS = 120.0

Listen = Callable[..., Listening]


def moves() -> list[tuple[str, str]]:
    """The replacements in the README's section "Move from the hosted API"."""
    section = README.read_text("utf-8").partition("## Move from the hosted API\n")[2]
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| `([^`]+localhost[^`]+)` \|$", section, re.M)
    assert len(rows) == 11
    return rows


def moved(text: str, url: str) -> str:
    """A hosted API's client that calls `url`, changed as the README says."""
    count = 0
    for old, new in moves():
        whole = re.escape(old) + (r"\b" if old[-1].isalnum() else "")  # runpod, but not runpodSdk
        here = re.sub(r"https?://localhost:(?:8000|8443)", url, new)
        text, found = re.subn(whole, lambda _, here=here: here, text)
        count += found
    assert count, "no line of the README's table is in this client"
    return text


def sample(name: str, url: str) -> str:
    """A page's client that calls `url` with a key of the gateway."""
    text = (SAMPLES / f"{name}.txt").read_text("utf-8")
    return moved(text.replace("<YOUR_AIMLAPI_KEY>", KEY), url)


def run(
    command: list[str],
    text: str,
    folder: Path,
    suffix: str,
    *,
    fails: bool = False,
    **environment: str,
) -> str:
    """The output of the client, with its errors if it `fails`."""
    path = folder / f"client{suffix}"
    path.write_text(text, "utf-8")
    apis = ("OXEN", "RUNPOD", "DASHSCOPE", "ALIBABA", "OPENAI", "HOSTED_VLLM")
    keys = {f"{api}_API_KEY": KEY for api in apis}
    done = subprocess.run(
        [*command, str(path)],
        env={"PATH": os.environ["PATH"], **keys, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout + done.stderr if fails else done.stdout


def python(text: str, folder: Path, *, fails: bool = False, **environment: str) -> str:
    """Shortens its pauses between polls, because nothing renders here."""
    quick = (
        "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(min(seconds, 0.1))\n"
    )
    (folder / "sitecustomize.py").write_text(quick)
    environment["PYTHONPATH"] = str(folder)
    return run([sys.executable, "-u"], text, folder, ".py", fails=fails, **environment)


def bash(text: str, folder: Path) -> str:
    """Shortens its pauses, too."""
    (folder / "quick.sh").write_text("sleep() { command sleep 0.1; }\n")
    command = ["bash", "-euo", "pipefail"]
    return run(command, text, folder, ".sh", BASH_ENV=str(folder / "quick.sh"))


def assert_clip(url: str) -> None:
    assert httpx.get(url).content == CLIP


def assert_sample_was_run(listening: Listening, **expected: object) -> None:
    (request,) = listening.backend.requests.values()
    assert isinstance(request, dict)
    assert {name: request[name] for name in expected} == expected


def test_every_line_of_the_readme_occurs_in_a_client_that_runs_here() -> None:
    texts = [path.read_text("utf-8") for path in SAMPLES.iterdir()]
    texts += [RUNPOD_PACKAGE, RUNPOD_SDK]
    assert [old for old, _ in moves() if not any(old in text for text in texts)] == []


# --- Python --------------------------------------------------------------------------------------


def test_aiml_in_python(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    printed = python(sample("aiml.py", here.url), tmp_path)
    first, second, *_ = printed.splitlines()
    created = ast.literal_eval(first)
    assert created == {
        "id": created["id"],
        "status": "queued",
        "meta": {"usage": {"credits_used": 1575000}},
    }
    assert second.split() == ["Generation", "ID:", created["id"]]
    done = ast.literal_eval(printed.partition("Processing complete:\n")[2].strip())
    assert (done["id"], done["status"]) == (created["id"], "completed")
    assert_clip(done["video"]["url"])
    assert_sample_was_run(here, duration=5, size="1920*1080", enable_prompt_expansion=True)


def test_oxen_sync_in_python(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    answer = ast.literal_eval(python(sample("oxen_sync.py", here.url), tmp_path))
    assert answer["model"] == "wan-v2-6-image-to-video"
    assert_clip(answer["videos"][0]["url"])
    assert_sample_was_run(here, duration=5, size="1920*1080", enable_prompt_expansion=True)


def test_oxen_queue_in_python(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    printed = python(sample("oxen_queue.py", here.url), tmp_path)
    assert printed.startswith("Result: ")
    assert_clip(printed.removeprefix("Result: ").strip())


def test_oxen_events_in_python(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    event = ast.literal_eval(python(sample("oxen_events.py", here.url), tmp_path))
    assert sorted(event) == ["generation_id", "media_type", "model", "status", "url"]
    assert event["status"] == "succeeded"
    assert_clip(event["url"])


VIDEO = "https://hub.oxen.ai/api/repos/ox/Oxen-AI-Assets/file/main/images/winter_summer_ox.mp4"
VIDEO_HERE = "https://example.com/ox.mp4"
REFERENCES = "wan-v2-6-reference-to-video"


def reference_sample(name: str, url: str) -> str:
    """A client of the reference page, with another video URL where it has one."""
    text = (SAMPLES / f"oxen_r2v_{name}.txt").read_text("utf-8")
    assert (VIDEO in text) == ("videos" in name)
    return moved(text.replace(VIDEO, VIDEO_HERE), url)


def assert_references_were_run(listening: Listening, name: str) -> None:
    """Has the videos where the client sends them; otherwise the prompt alone."""
    expected = [VIDEO_HERE] if "videos" in name else []
    assert_sample_was_run(listening, references=expected, duration=5, size="1920*1080")
    assert_sample_was_run(listening, aspect_ratio="16:9", enable_prompt_expansion=True)


@pytest.mark.parametrize("name", ["sync.py", "sync_videos.py"])
def test_oxen_references_sync_in_python(listen: Listen, tmp_path: Path, name: str) -> None:
    here = listen(api_keys=ENTRY)
    answer = ast.literal_eval(python(reference_sample(name, here.url), tmp_path))
    assert answer["model"] == REFERENCES
    assert_clip(answer["videos"][0]["url"])
    assert_references_were_run(here, name)


@pytest.mark.parametrize("name", ["queue.py", "queue_videos.py"])
def test_oxen_references_queue_in_python(listen: Listen, tmp_path: Path, name: str) -> None:
    here = listen(api_keys=ENTRY)
    printed = python(reference_sample(name, here.url), tmp_path)
    assert printed.startswith("Result: ")
    assert_clip(printed.removeprefix("Result: ").strip())
    assert_references_were_run(here, name)


@pytest.mark.parametrize("name", ["events.py", "events_videos.py"])
def test_oxen_references_events_in_python(listen: Listen, tmp_path: Path, name: str) -> None:
    here = listen(api_keys=ENTRY)
    event = ast.literal_eval(python(reference_sample(name, here.url), tmp_path))
    assert (event["status"], event["model"]) == ("succeeded", REFERENCES)
    assert_clip(event["url"])
    assert_references_were_run(here, name)


def test_runpod_in_python(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    text = f"RUNPOD_API_KEY = {KEY!r}\n" + sample("runpod.py", here.url)
    assert_clip(python(text, tmp_path).strip())
    assert_sample_was_run(here, duration=5, size="1280*720", enable_prompt_expansion=False)


RUNPOD_PACKAGE = """
import runpod
runpod.api_key = KEY
endpoint = runpod.Endpoint("wan-2-6-i2v")
print(endpoint.run_sync({"prompt": "Leaves sway", "image": "https://example.com/a.jpg"}))
"""


def test_runpod_s_python_client(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    text = moved(RUNPOD_PACKAGE, here.url).replace("= KEY", f"= {KEY!r}")
    assert_clip(ast.literal_eval(python(text, tmp_path))["video_url"])


def test_with_a_wrong_key_the_samples_say_so(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=new_entry("bob")[1])
    printed = python(sample("aiml.py", here.url), tmp_path, fails=True)
    assert "Error: 401 - " in printed and "requires a valid API key" in printed
    assert "401 Client Error" in python(sample("oxen_sync.py", here.url), tmp_path, fails=True)
    assert here.backend.requests == {}


# --- shell ---------------------------------------------------------------------------------------


@pytest.mark.system
def test_oxen_sync_with_curl(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    answer = json.loads(bash(sample("oxen_sync.sh", here.url), tmp_path))
    assert_clip(answer["videos"][0]["url"])


@pytest.mark.system
def test_oxen_queue_with_bash_and_jq(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    printed = bash(sample("oxen_queue.sh", here.url), tmp_path)
    assert "Status: succeeded\n" in printed
    found = json.loads(printed[printed.index("{") :])
    assert found["status"] == "succeeded"
    assert_clip(found["result_url"])


@pytest.mark.system
def test_oxen_events_with_awk(
    listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_engine.gateway.doors.oxen.door.KEEP_ALIVE_SECONDS", 1)
    here = listen(api_keys=ENTRY)
    # curl notices that awk has ended only when it writes again, at the next keep-alive.
    text = sample("oxen_events.sh", here.url)
    event = json.loads(run(["bash"], text, tmp_path, ".sh"))
    assert event["status"] == "succeeded"
    assert_clip(event["url"])


@pytest.mark.system
def test_oxen_model_with_curl(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    model = json.loads(bash(sample("oxen_model.sh", here.url), tmp_path))
    assert model["json_request_schema"]["required"] == ["prompt", "input_image"]


@pytest.mark.system
@pytest.mark.parametrize("name", ["sync.sh", "sync_videos.sh"])
def test_oxen_references_sync_with_curl(listen: Listen, tmp_path: Path, name: str) -> None:
    here = listen(api_keys=ENTRY)
    answer = json.loads(bash(reference_sample(name, here.url), tmp_path))
    assert_clip(answer["videos"][0]["url"])
    assert_references_were_run(here, name)


@pytest.mark.system
@pytest.mark.parametrize("name", ["queue.sh", "queue_videos.sh"])
def test_oxen_references_queue_with_bash_and_jq(listen: Listen, tmp_path: Path, name: str) -> None:
    here = listen(api_keys=ENTRY)
    printed = bash(reference_sample(name, here.url), tmp_path)
    found = json.loads(printed[printed.index("{") :])
    assert (found["status"], found["model_name"]) == ("succeeded", REFERENCES)
    assert_clip(found["result_url"])
    assert_references_were_run(here, name)


@pytest.mark.system
@pytest.mark.parametrize("name", ["events.sh", "events_videos.sh"])
def test_oxen_references_events_with_awk(
    listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("wan_engine.gateway.doors.oxen.door.KEEP_ALIVE_SECONDS", 1)
    here = listen(api_keys=ENTRY)
    event = json.loads(run(["bash"], reference_sample(name, here.url), tmp_path, ".sh"))
    assert event["status"] == "succeeded"
    assert_clip(event["url"])
    assert_references_were_run(here, name)


@pytest.mark.system
def test_oxen_reference_model_with_curl(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    model = json.loads(bash(reference_sample("model.sh", here.url), tmp_path))
    assert model["json_request_schema"]["required"] == ["prompt"]


@pytest.mark.system
def test_runpod_with_curl(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    answer = json.loads(bash(sample("runpod.sh", here.url), tmp_path))
    assert answer["status"] == "COMPLETED"
    assert_clip(answer["output"]["video_url"])


# --- JavaScript ----------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that only its holder trusts, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


@pytest.mark.system
def test_aiml_in_javascript(listen: Listen, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    here = listen(tls=certificate, api_keys=ENTRY)  # the sample only speaks https
    trusted = {"NODE_EXTRA_CA_CERTS": str(certificate[0])}
    quick = "const later = setTimeout; setTimeout = (work, ms) => later(work, Math.min(ms, 100));"
    (tmp_path / "quick.cjs").write_text(quick)
    node = ["node", "--require", str(tmp_path / "quick.cjs")]
    printed = run(node, sample("aiml.js", here.url), tmp_path, ".js", **trusted)
    assert printed.startswith("Generation ID: ")
    done = printed.partition("Processing complete:")[2]
    assert "status: 'completed'" in done
    assert f"url: '{here.url}/results/" in done
    assert_sample_was_run(here, duration=5, size="1920*1080", enable_prompt_expansion=True)


@pytest.mark.system
def test_runpod_in_javascript(listen: Listen, tmp_path: Path) -> None:
    here = listen(api_keys=ENTRY)
    text = f"const RUNPOD_API_KEY = {json.dumps(KEY)};\n" + sample("runpod.js", here.url)
    assert_clip(run(["node"], text, tmp_path, ".mjs").strip())


RUNPOD_SDK = """
import runpodSdk from "runpod-sdk";
const { RUNPOD_API_KEY } = process.env;
const runpod = runpodSdk(RUNPOD_API_KEY);
const endpoint = runpod.endpoint("wan-2-6-i2v");
const input = { prompt: "Leaves sway", image: "https://example.com/a.jpg" };
const found = {};
found.sync = await endpoint.runSync({ input });
found.failed = await endpoint.runSync({ input: { ...input, prompt: "fail:out_of_memory:Full" } });
const { id } = await endpoint.run({ input: { ...input, prompt: "hang" } });
found.run = await endpoint.status(id);
while ((found.running = await endpoint.status(id)).status === "IN_QUEUE") {}
found.health = await endpoint.health();
found.cancelled = await endpoint.cancel(id);
found.ended = await endpoint.status(id);
const second = await endpoint.run({ input });
found.streamed = [];
for await (const part of endpoint.stream(second.id)) found.streamed.push(part);
found.purged = await endpoint.purgeQueue();
console.log(JSON.stringify(found));
"""


@pytest.mark.system
def test_runpod_s_javascript_client(listen: Listen, tmp_path: Path) -> None:
    assert (NODE_PACKAGES / "runpod-sdk").is_dir(), "npm ci --prefix tests/system"
    (tmp_path / "node_modules").symlink_to(NODE_PACKAGES)
    here = listen(api_keys=ENTRY)
    printed = run(["node"], moved(RUNPOD_SDK, here.url), tmp_path, ".mjs")
    found = json.loads(printed.splitlines()[-1])
    sync = found["sync"]
    assert (sync["status"], sync["completed"], sync["succeeded"]) == ("COMPLETED", True, True)
    assert_clip(sync["output"]["video_url"])
    assert (found["failed"]["status"], found["failed"]["error"]) == ("FAILED", "Full")
    assert found["run"]["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert found["running"]["status"] == "IN_PROGRESS"
    assert found["health"]["jobs"]["inProgress"] == 1
    assert found["health"]["workers"]["running"] == 1
    assert found["cancelled"]["status"] == "CANCELLED"
    assert (found["ended"]["status"], found["ended"]["completed"]) == ("CANCELLED", True)
    (part,) = found["streamed"]
    assert_clip(part["output"]["video_url"])
    assert found["purged"] == {"removed": 0, "status": "completed"}
