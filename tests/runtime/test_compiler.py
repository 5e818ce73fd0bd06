"""Whether this machine can compile: with compilers that work, fail, hang or are missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wan_engine.errors import Cancelled
from wan_engine.runtime import compiler

HANGS = "#!/bin/sh\nsleep 300 &\necho $! > {folder}/child\nwait\n"


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Forgets earlier answers, and uses folders of the test."""
    for name in ("CC", "CXX", "TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    compiler.problem.cache_clear()
    yield
    compiler.problem.cache_clear()


@pytest.fixture
def as_with_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "packages" / "triton").mkdir(parents=True)
    (tmp_path / "packages" / "triton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Make a script the only compiler, under every name."""

    def install(script: str) -> Path:
        folder = tmp_path / "programs"
        folder.mkdir()
        for name in ("gcc", "g++", "clang"):
            (folder / name).write_text(script.format(folder=folder))
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return folder

    return install


def test_without_a_compiler_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_with_triton: None
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install = "install gcc, g++ and Python's headers"
    assert compiler.problem("cpu") == f"there is no C++ compiler: {install}"
    assert compiler.problem("cuda") == f"there is no C compiler: {install}"


def test_without_triton_nothing_is_compiled_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert compiler.problem("cuda") == "package triton is not installed"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiler_that_fails_is_quoted(
    install: Callable[[str], Path], as_with_triton: None, device: str
) -> None:
    install("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    found = compiler.problem(device)
    assert found is not None and "fails (fatal error: Python.h: No such file)" in found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_compiler_that_hangs_is_stopped_with_its_child_processes(
    install: Callable[[str], Path],
    as_with_triton: None,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = install(HANGS)
    monkeypatch.setattr(compiler, "_SECONDS", 3)
    found = compiler.problem(device)
    assert found is not None and found.endswith("did not end within 3 seconds")
    child = Path("/proc", (folder / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 30
    while child.exists() and child.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("device", "variable"),
    [
        ("cpu", "TORCHINDUCTOR_CACHE_DIR"),
        ("cuda", "TORCHINDUCTOR_CACHE_DIR"),
        ("cuda", "TRITON_CACHE_DIR"),
    ],
)
def test_a_folder_that_cannot_hold_code_is_named(
    install: Callable[[str], Path],
    as_with_triton: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: str,
    variable: str,
) -> None:
    # Compiles nothing but makes the file, because this test is not about an empty library.
    monkeypatch.setattr(compiler, "_run", lambda _command: None)
    monkeypatch.setattr(compiler, "_load", lambda _library: None)
    (tmp_path / "file").touch()
    assert compiler.problem(device) is None
    compiler.problem.cache_clear()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    found = compiler.problem(device)
    assert found is not None and f"{tmp_path / 'file' / 'cache'} cannot be written" in found


def raised(error: Exception, file: str) -> Exception:
    """Raises `error` as if from code in `file`."""
    try:
        exec(compile("def fail(error):\n    raise error\n", file, "exec"), scope := {})
        scope["fail"](error)  # type: ignore[operator]
    except Exception as caught:  # noqa: BLE001
        return caught
    raise AssertionError


INDUCTOR = "/venv/site-packages/torch/_inductor/output_code.py"


@pytest.mark.parametrize(
    ("error", "file", "compiling"),
    [
        (RuntimeError("Failed to find C compiler"), "/venv/triton/runtime/build.py", True),
        (OSError(28, "No space left on device"), INDUCTOR, True),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), INDUCTOR, True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access"), INDUCTOR, False),
        (RuntimeError("CUDA error: unspecified launch failure"), INDUCTOR, False),
        (ValueError("a shape"), "/venv/site-packages/diffusers/pipeline.py", False),
        (Cancelled(), INDUCTOR, False),
    ],
)
def test_errors_of_compiling_are_distinguished_from_a_broken_device(
    error: Exception, file: str, compiling: bool
) -> None:
    assert compiler.failed_in_compiled_code(raised(error, file)) == compiling


def test_a_reason_is_one_line_with_the_compilers_last_message() -> None:
    class CppCompileError(RuntimeError):
        pass

    text = "C++ compile error\n\nCommand:\ng++ -O3\n\nOutput:\nmain.cpp:\nfatal error: no room\n"
    reason = compiler.reason(CppCompileError(text))
    assert reason == "CppCompileError: C++ compile error: fatal error: no room"
