"""Downloads from a Hub on loopback: what is fetched, and what is said when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from builder import tiny
from wan_engine import weights
from wan_engine.catalog import CLASSIFIERS
from wan_engine.errors import ModelMissing
from wan_engine.settings import Settings
from wan_engine.weights import files

MakeSettings = Callable[..., Settings]
COMMIT = CLASSIFIERS["qwen3guard-gen-0.6b"].revision
assert COMMIT


class Hub(ThreadingHTTPServer):
    """The few routes that a download needs, for one folder; or one answer for every request."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.status, self.code = 404, ""
        self.broken = ""  # this file ends in the middle
        self.served: list[str] = []
        super().__init__(("127.0.0.1", 0), HubHandler)


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        folder = self.server.folder
        if folder is None:
            self.answer(self.server.status, b"", **{"X-Error-Code": self.server.code})
        elif "/tree/" in self.path:
            listed = [
                {"type": "file", "path": path.name, **about(path)} for path in folder.iterdir()
            ]
            self.answer(200, json.dumps(listed).encode())
        elif "/resolve/" in self.path:
            path = folder / self.path.rpartition("/")[2]
            if self.command == "GET":
                self.server.served.append(path.name)
            headers = {"ETag": f'"{about(path)["oid"]}"', "X-Repo-Commit": str(COMMIT)}
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
            self.wfile.write(body[: len(body) // 2] if broken else body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def about(path: Path) -> dict[str, Any]:
    return {"oid": hashlib.sha1(path.read_bytes()).hexdigest(), "size": path.stat().st_size}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on loopback, an empty cache, and a client that may use the network."""
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
    """No report of what is fetched."""


def test_a_classifier_is_fetched_at_its_pinned_revision(
    hub: Hub, make_settings: MakeSettings, tiny_cache: Path, tmp_path: Path
) -> None:
    name = "qwen3guard-gen-0.6b"
    hub.folder = tmp_path / "repository"
    tiny.build("tiny-prompt-guard", hub.folder)
    (hub.folder / "pytorch_model.bin").write_bytes(b"a pickle")
    told: list[str] = []
    located = weights.download_classifier(name, "prompt", make_settings(), told.append)
    assert located.folder.name == COMMIT and told == [f"Qwen/Qwen3Guard-Gen-0.6B at {COMMIT}"]
    assert "chat_template.jinja" in hub.served and "model.safetensors" in hub.served
    assert "pytorch_model.bin" not in hub.served
    assert weights.resolve_classifier(name, "prompt", make_settings()).folder == located.folder


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (404, "RepoNotFound", "The Hub has no repository me/mine, or it is private"),
        (403, "GatedRepo", "me/mine is gated: accept its licence at huggingface.co/me/mine"),
        (404, "RevisionNotFound", "no longer has the revision that is pinned"),
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


def test_a_name_that_is_no_hub_id_is_told(hub: Hub, make_settings: MakeSettings) -> None:
    with pytest.raises(ModelMissing, match="neither a name that"):
        weights.download("not/a/hub id", make_settings(), nothing)


def test_an_offline_client_is_told(
    hub: Hub, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelMissing, match="HF_HUB_OFFLINE is set"):
        weights.download("me/mine", make_settings(), nothing)


def test_a_connection_that_breaks_in_a_file_is_told(
    hub: Hub, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.folder = tmp_path / "repository"
    tiny.build("tiny-prompt-guard", hub.folder)
    hub.broken = "model.safetensors"
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with pytest.raises(ModelMissing, match="the connection to the Hub failed"):
        weights.download_classifier("me/mine", "prompt", make_settings(), nothing)


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "cannot be written. Set HF_HOME")],
)
def test_a_disk_that_takes_no_more_is_told(
    hub: Hub,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    sentence: str,
) -> None:
    hub.folder = tmp_path / "repository"
    tiny.build("tiny-prompt-guard", hub.folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, "refused by the system")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelMissing, match=sentence):
        weights.download_classifier("me/mine", "prompt", make_settings(), nothing)
