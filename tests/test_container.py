"""The Dockerfile: copied files exist, packages are pinned, and there is no secret."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from builder import runpod_hub
from wan_engine.settings import described
from wan_engine.weights import files

ROOT = Path(__file__).parents[1]
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile as (name, arguments), without comments and continuation
    lines."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    joined = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, rest in found]


def rest_of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==(\S+)(?: ; .*)? \\$", text, re.MULTILINE))


def test_an_init_is_the_first_process_and_no_process_is_root() -> None:
    assert [json.loads(rest) for rest in rest_of("ENTRYPOINT")] == [["tini", "--"]]
    assert [json.loads(rest) for rest in rest_of("CMD")] == [["python", "handler.py"]]
    assert rest_of("USER") == ["${RUN_AS}"] and "RUN_AS=wan" in rest_of("ARG")
    assert any(re.search(r"useradd .*\bwan\b", rest) for rest in rest_of("RUN"))


def test_the_image_has_what_torch_compiles_with() -> None:
    [installed] = [rest for rest in rest_of("RUN") if "apt-get install" in rest]
    assert {"gcc", "g++", "libc6-dev", "tini"} <= set(installed.split())
    last = (ROOT / "Dockerfile").read_text("utf-8").rpartition("\nFROM ")[2]
    assert installed.split()[-1] in last  # in the final stage
    assert last.index("USER ") < last.index("wan_engine.runtime.compiler import problem")


def test_no_secret_is_an_argument_or_a_variable_of_the_image() -> None:
    for word in ("ARG", "ENV"):
        assert [rest for rest in rest_of(word) if SECRET.search(rest)] == []
    with_secret = [rest for rest in rest_of("RUN") if SECRET.search(rest)]
    assert all(rest.startswith("--mount=type=secret,") for rest in with_secret) and with_secret


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    assert ignored[0] == "*"
    sources = [
        source
        for rest in rest_of("COPY")
        if not rest.startswith("--from")
        for source in rest.replace("${LOCK}", "requirements.lock").split()[:-1]
    ]
    assert {"handler.py", "wan_engine", "builder", "requirements.lock"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed), source


def test_the_trainer_of_the_toy_is_not_in_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert (ROOT / "builder" / "train_toy").is_dir()
    assert ignored.index("builder/train_toy") > ignored.index("!builder")


def test_the_classifiers_are_downloaded_to_where_the_engine_looks() -> None:
    [command] = [rest for rest in rest_of("RUN") if "download safety" in rest]
    home = re.search(r"HF_HOME=(\S+)", command)
    assert home and Path(home[1]) / "hub" == files.BAKED_HUB_CACHE
    assert f"--from=safety {files.BAKED_HUB_CACHE.parents[1]} " in " ".join(rest_of("COPY"))


def test_every_requirement_is_in_the_lock_in_its_version() -> None:
    pins = locked()
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len(wanted) > 15 and len(pins) > len(wanted)
    for one in wanted:
        version = pins.get(one.name.replace("_", "-"))
        assert version and one.specifier.contains(version), f"{one}: make requirements.lock again"


def test_every_package_of_the_lock_has_a_hash_and_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text("utf-8")
    blocks = re.split(r"^(?=[a-z0-9].*==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked())
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text and "--index-url" not in text


def test_the_hub_form_allows_the_cuda_version_of_the_lock() -> None:
    major_minor = ".".join(locked()["cuda-toolkit"].split(".")[:2])
    assert runpod_hub.hub()["config"]["allowedCudaVersions"][0] == major_minor


def test_the_compose_file_sets_known_settings_and_holds_no_secret() -> None:
    composed: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
    variables = {row.variable for row in described()}
    for name in ("gateway", "worker"):
        service = composed["services"][name]
        assert set(service["environment"]) <= variables
        assert service["init"] is False
    for service in composed["services"].values():
        for name, value in service["environment"].items():
            if SECRET.search(name) and name not in ("BUCKET_ACCESS_KEY_ID", "WAN_API_KEYS"):
                assert value.startswith("${MINIO_ROOT_PASSWORD:?")
    assert composed["services"]["gateway"]["environment"]["WAN_API_KEYS"].startswith("${")
    extra = yaml.safe_load((ROOT / "docker" / "gpu.yaml").read_text("utf-8"))
    assert set(extra["services"]) == {"gateway", "worker"}
