"""Downloads from a local Hub: what is downloaded, and the message for each failure."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

from wan_engine import toy, weights
from wan_engine.catalog import CATALOG, CLASSIFIERS, HubLora
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights import files, manifest

MakeSettings = Callable[..., Settings]
COMMIT = CLASSIFIERS["qwen3guard-gen-0.6b"].revision
assert COMMIT


class Hub(ThreadingHTTPServer):
    """The routes of the Hub that a download of one folder needs, or one answer for every
    request."""

    daemon_threads = True

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.status, self.code = 404, ""
        self.broken = ""  # this file ends early
        self.stalled = ""  # this one too, and then the connection stalls
        self.served: list[str] = []
        self.reached, self.released = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), HubHandler)

    def handle_error(self, *_: Any) -> None:
        """Some tests kill the client."""


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        folder = self.server.folder
        if folder is None:
            self.answer(self.server.status, b"", **{"X-Error-Code": self.server.code})
        elif "/tree/" in self.path:
            listed = [
                {"type": "file", "path": path.relative_to(folder).as_posix(), **about(path)}
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
            self.answer(200, json.dumps(listed).encode())
        elif "/resolve/" in self.path:
            name = unquote(self.path.partition("/resolve/")[2].partition("/")[2])
            path = folder / name
            if self.command == "GET":
                self.server.served.append(name)
            oid = about(path).get("lfs", about(path))["oid"]
            headers = {"ETag": f'"{oid}"', "X-Repo-Commit": str(COMMIT)}
            self.answer(200, path.read_bytes(), **headers)
        else:
            self.answer(200, json.dumps({"id": "a/b", "sha": COMMIT, "siblings": []}).encode())

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            broken = self.server.broken and self.path.endswith(self.server.broken)
            stalled = self.server.stalled and self.path.endswith(self.server.stalled)
            self.wfile.write(body[: len(body) // 2] if broken or stalled else body)
            if stalled:
                self.wfile.flush()
                self.server.reached.set()
                self.server.released.wait(30)

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


def about(path: Path) -> dict[str, Any]:
    """The Hub's listing, which names large files by their SHA-256."""
    content = path.read_bytes()
    entry: dict[str, Any] = {"oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
    if path.suffix == ".safetensors":
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A local Hub, an empty cache, and a client that may use the network."""
    with Hub() as server:
        constants = huggingface_hub.constants
        here = f"http://127.0.0.1:{server.server_port}"
        template = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", here)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", tmp_path / "runpod")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def nothing(_: str) -> None:
    """Ignore the progress of a download."""


def test_a_classifier_is_downloaded_at_its_pinned_revision(
    hub: Hub, make_settings: MakeSettings, tiny_cache: Path, tmp_path: Path
) -> None:
    name = "qwen3guard-gen-0.6b"
    hub.folder = tmp_path / "repository"
    toy.build("tiny-prompt-guard", hub.folder)
    (hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    told: list[str] = []
    located = weights.download_classifier(name, "prompt", make_settings(), told.append)
    assert located.folder.name == COMMIT
    assert told[0].startswith("Qwen3Guard-Gen 0.6B: prompts in 119 languages; licence: Apache-2.0;")
    assert told[1:] == [f"fetching Qwen/Qwen3Guard-Gen-0.6B at {COMMIT}"]
    assert "chat_template.jinja" in hub.served and "model.safetensors" in hub.served
    assert "pytorch_model.bin" not in hub.served
    assert weights.resolve_classifier(name, "prompt", make_settings()).folder == located.folder


def test_a_hub_id_is_downloaded_at_its_named_tag_and_found_by_it(
    hub: Hub, make_settings: MakeSettings, tiny_cache: Path, tmp_path: Path
) -> None:
    hub.folder = toy.build("tiny-prompt-guard", tmp_path / "repository")
    told: list[str] = []
    name = "me/guard@v1.0"
    located = weights.download_classifier(name, "prompt", make_settings(), told.append)
    assert "fetching me/guard at v1.0" in told and located.folder.name == COMMIT
    no_files(hub)
    for known in (name, "me/guard", f"me/guard@{str(COMMIT)[:7]}"):
        found = weights.resolve_classifier(known, "prompt", make_settings())
        assert found.folder == located.folder
    with pytest.raises(ModelMissing):
        weights.resolve_classifier("me/guard@v2.0", "prompt", make_settings())


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (404, "RepoNotFound", "The Hub has no repository me/mine, or it is private"),
        (403, "GatedRepo", "me/mine is gated: accept its licence at huggingface.co/me/mine"),
        (404, "RevisionNotFound", "does not have this revision"),
        (401, "", "refuses me/mine to this account (401). Check HF_TOKEN"),
        (500, "", "the Hub answered 500. Try again later"),
        (429, "", "the Hub answered 429. Try again later"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(
    hub: Hub, make_settings: MakeSettings, status: int, code: str, sentence: str
) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(ModelMissing, match=re.escape(sentence)):
        weights.download("me/mine", make_settings(), nothing)
    with pytest.raises(ModelMissing, match=re.escape(sentence)):
        weights.download_classifier("me/mine", "image", make_settings(), nothing)


def test_a_name_that_is_not_a_hub_id_is_reported(hub: Hub, make_settings: MakeSettings) -> None:
    with pytest.raises(ModelMissing, match="neither a name that"):
        weights.download("not/a/hub id", make_settings(), nothing)


def test_an_offline_client_is_reported(
    hub: Hub, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelMissing, match="HF_HUB_OFFLINE is set"):
        weights.download("me/mine", make_settings(), nothing)


def test_a_connection_that_breaks_during_a_file_is_reported(
    hub: Hub, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.folder = tmp_path / "repository"
    toy.build("tiny-prompt-guard", hub.folder)
    hub.broken = "model.safetensors"
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with pytest.raises(ModelMissing, match="the connection to the Hub failed"):
        weights.download_classifier("me/mine", "prompt", make_settings(), nothing)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written. Set HF_HOME")],
)
def test_a_disk_that_fills_up_is_reported(
    hub: Hub,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    sentence: str,
) -> None:
    hub.folder = tmp_path / "repository"
    toy.build("tiny-prompt-guard", hub.folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused by the system")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelMissing, match=sentence):
        weights.download_classifier("me/mine", "prompt", make_settings(), nothing)


# --- whole models --------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
BIG = "transformer_2/diffusion_pytorch_model.safetensors"
ROW = replace(CATALOG["wan2.2-i2v-a14b"], repo="me/mine", revision=COMMIT)


@pytest.fixture
def repository(hub: Hub, tiny_cache: Path, tmp_path: Path) -> Path:
    """The contents of the Hub: a tiny checkpoint of the two-expert kind."""
    hub.folder = tmp_path / "repository"
    shutil.copytree(toy.build("wan-tiny", tiny_cache / "wan-tiny"), hub.folder)
    return hub.folder


@pytest.fixture
def volume(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runpod's volume, where the Hub's client keeps its cache."""
    cache = tmp_path / "runpod-volume" / "huggingface-cache" / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(files, "RUNPOD_HUB_CACHE", cache)
    return cache


def no_files(hub: Hub) -> None:
    """From here on, the Hub answers only with an error."""
    hub.folder, hub.status = None, 500


def test_a_row_is_downloaded_once_and_then_needs_no_hub(
    hub: Hub,
    repository: Path,
    volume: Path,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CATALOG, ROW.name, ROW)  # type: ignore[misc]
    told: list[str] = []
    located = weights.download(ROW.name, make_settings(), told.append)
    assert located.folder == volume / "models--me--mine" / "snapshots" / str(COMMIT)
    assert re.match(r".*; licence: Apache-2.0; \d+\.\d GB to fetch, \d+\.\d GB free in ", told[0])
    made = manifest.read(located.folder)
    assert made and (made.model, made.repo, made.revision) == (ROW.name, "me/mine", COMMIT)
    published = hashlib.sha256((repository / BIG).read_bytes()).hexdigest()
    assert {file.path: file.sha256 for file in made.files}[BIG] == published
    weights.verify(located.folder)
    no_files(hub)
    assert weights.download(ROW.name, make_settings(), told.append) == located
    assert told[-1].startswith("complete in ")
    assert weights.resolve(ROW.name, make_settings()) == located


def test_a_model_that_is_too_large_for_the_disk_is_refused_before_the_download(
    hub: Hub,
    repository: Path,
    volume: Path,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = shutil.disk_usage(repository)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ModelMissing, match=r"needs 0\.\d GB more and .* has 0\.1 GB free"):
        weights.download("me/mine", make_settings(), nothing)
    assert [name for name in hub.served if name.endswith(".safetensors")] == []


def test_a_killed_download_is_incomplete_and_can_be_resumed(
    hub: Hub, repository: Path, volume: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    hub.stalled = BIG
    process = subprocess.Popen(
        [sys.executable, "-m", "wan_engine", "download", "me/mine"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_CACHE": str(volume),
        },
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert hub.reached.wait(60)
        whole = volume / "models--me--mine" / "snapshots" / str(COMMIT) / "vae"
        for _ in range(600):
            if list(whole.glob("*.safetensors")):
                break
            hub.released.wait(0.05)
    finally:
        process.kill()
        process.communicate()
        hub.released.set()
    assert process.returncode == -9
    with pytest.raises(ModelMissing, match=r"missing or cut off: .*transformer_2"):
        weights.resolve("me/mine", make_settings())
    hub.stalled, before = "", len(hub.served)
    located = weights.download("me/mine", make_settings(), nothing)
    weights.verify(located.folder)
    again = hub.served[before:]
    assert BIG in again and "vae/diffusion_pytorch_model.safetensors" not in again


def test_a_truncated_file_in_the_cache_is_downloaded_again(
    hub: Hub, repository: Path, volume: Path, make_settings: MakeSettings
) -> None:
    folder = weights.download("me/mine", make_settings(), nothing).folder
    blob = (folder / BIG).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(ModelMissing, match=re.escape(f"1 files are missing or cut off: {BIG}")):
        weights.resolve("me/mine", make_settings())
    told: list[str] = []
    weights.download("me/mine", make_settings(), told.append)
    assert f"removed what was cut off: {BIG}" in told
    assert (folder / BIG).read_bytes() == (repository / BIG).read_bytes()


def test_a_damaged_file_of_the_right_size_is_found_and_downloaded_again(
    hub: Hub, repository: Path, volume: Path, make_settings: MakeSettings
) -> None:
    folder = weights.download("me/mine", make_settings(), nothing).folder
    blob = (folder / BIG).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelMissing, match=re.escape(f"{BIG}; they were removed")):
        weights.verify(folder)
    weights.download("me/mine", make_settings(), nothing)
    weights.verify(folder)


def test_a_damaged_file_of_an_own_folder_is_reported_and_not_deleted(repository: Path) -> None:
    with pytest.raises(ModelMissing, match=r"has no manifest\.json to compare with"):
        weights.verify(repository)
    manifest.Manifest("mine", None, None, manifest.list_files(repository)).write(repository)
    weights.verify(repository)
    (repository / BIG).write_bytes(b"?")
    with pytest.raises(ModelMissing, match=re.escape(f"{BIG}; replace them")):
        weights.verify(repository)
    assert (repository / BIG).is_file()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_lora_file_is_compared_with_its_checksum_if_there_is_one(
    hub: Hub,
    repository: Path,
    volume: Path,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    pinned: bool,
) -> None:
    (repository / "lora.safetensors").write_bytes(b"weights")
    lora = HubLora("me/lora", "lora.safetensors", "0" * 64 if pinned else None, "high")
    monkeypatch.setitem(CATALOG, ROW.name, replace(ROW, loras=(lora,)))  # type: ignore[misc]
    told: list[str] = []
    if pinned:
        with pytest.raises(ModelMissing, match=r"not the file that was pinned.*it was removed"):
            weights.download(ROW.name, make_settings(), told.append)
    else:
        located = weights.download(ROW.name, make_settings(), told.append)
        assert located.loras[0].path.read_bytes() == b"weights"
    assert told[-1].endswith("(checksum not pinned)") == (not pinned)
    assert len(list(volume.glob("models--me--lora/blobs/*"))) == (0 if pinned else 1)
