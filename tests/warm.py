"""Runs our programs in new processes that do not import the large libraries again.

torch, diffusers and transformers take five seconds to import, most of the time of a short test of a
command or a worker. One process imports them and stays. Each program is a fork of it with its own
arguments, environment, folder and descriptors, and runs the unmodified file as `__main__`. Before
the fork, none of our modules is imported, and none that reads the environment on import. Those are
the SDK and the Hub's client; programs with HF_ variables start cold.

Gateways must not import torch. They are forks of a second such process, which has done their one
second of imports.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
_REQUEST_BYTES = 1 << 20
_LONGEST_START_SECONDS = 120
_LIBRARIES = {
    "engine": (
        "aiohttp",
        "boto3",
        "diffusers.pipelines.wan.pipeline_wan_i2v",
        "diffusers.schedulers.scheduling_unipc_multistep",
        "paramiko",
        "pydantic_settings",
        "rich.progress",
        "tomlkit",
        "torch",
        "transformers.models.qwen3.modeling_qwen3",
        "transformers.models.t5.tokenization_t5",
        "transformers.models.umt5.modeling_umt5",
        "transformers.models.vit.image_processing_pil_vit",
        "transformers.models.vit.modeling_vit",
        "typer",
    ),
    "gateway": (
        "PIL.Image",
        "aiosqlite",
        "alembic.config",
        "asyncpg",
        "fastapi",
        "httptools",
        "httpx",
        "numpy",
        "prometheus_client",
        "pydantic_settings",
        "sqlalchemy.ext.asyncio",
        "sse_starlette",
        "typer",
        "uvicorn",
    ),
}
"""Import by name, because a linter would remove an import that only saves time."""


class Process:
    """A running program, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r")
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_opened: dict[str, Warm] = {}


def shared(kind: str = "engine") -> Warm:
    """One process of each kind, "engine" or "gateway", for all tests of this process. It belongs to
    the parent process, if that one lends its own."""
    if kind not in _opened:
        lent = os.environ.get(f"WARM_{kind}")
        _opened[kind] = Warm(kind, lent)
        if lent is None:
            atexit.register(_opened[kind].close)
    return _opened[kind]


def lend() -> None:
    """Have one process of each kind for all child processes of this one."""
    for kind in _LIBRARIES:
        os.environ[f"WARM_{kind}"] = shared(kind).path


def children() -> dict[int, str]:
    """Process id and state letter of this process's children in /proc, including ended ones that
    nobody waited for, but without the processes of `shared`."""
    ours = {warm.pid for warm in _opened.values() if warm.pid is not None}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and int(folder.name) not in ours:
            found[int(folder.name)] = state
    return found


class Warm:
    """The process with the libraries, which ends with this one, or another process's that listens
    at `path`."""

    def __init__(self, kind: str, path: str | None = None) -> None:
        self.pid: int | None = None
        if path is not None:
            self.path = path
            return
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.path = str(Path(self._folder.name) / "socket")
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind, self.path],
            env={**kept, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _connected(self) -> socket.socket:
        """Start it, and wait until its libraries are imported."""
        deadline = time.monotonic() + _LONGEST_START_SECONDS
        while time.monotonic() < deadline:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                time.sleep(0.05)
            else:
                return connection
        raise TimeoutError(f"the libraries were not imported in {_LONGEST_START_SECONDS} s")

    def start(
        self,
        program: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: IO[Any],
        stdout: IO[Any],
        stderr: IO[Any],
        start_new_session: bool = False,
    ) -> Process:
        """`program` is what follows `python` in a shell: a file, or `-m` and a module, and then the
        arguments."""
        assert not any(name.startswith("HF_") for name in env)
        assert env.get("OMP_NUM_THREADS") == "1"
        asked = {
            "program": program,
            "env": dict(env),
            "cwd": str(cwd),
            "session": start_new_session,
        }
        connection = self._connected()
        files = [file.fileno() for file in (stdin, stdout, stderr)]
        socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], files)
        return Process(connection)

    def run(
        self,
        program: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: str = "",
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run` with text and both outputs captured."""
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(stdin)
            given.seek(0)
            process = self.start(program, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(list(program), code, out.read(), err.read())


# --- in the warm process --------------------------------------------------------------------------


def _import_libraries(kind: str) -> None:
    """Import what the programs import sooner or later, with the modules of their classes. Of the
    SDK only its dependencies, because its own modules read the environment."""
    for name in _LIBRARIES[kind]:
        import_module(name)
    if kind == "engine":
        _know_the_processor()


def _know_the_processor() -> None:
    import cpuinfo

    # On import, the SDK asks for the processor's name, which takes a second.
    processor = cpuinfo.get_cpu_info()
    cpuinfo.get_cpu_info = lambda: processor


def _serve(path: str) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in the fork that is to run it, and None once no
    one sends requests."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks that wait
    gc.freeze()  # forks do not scan the objects of this process
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _become(connection)
        connection.close()


def _become(connection: socket.socket) -> dict[str, Any]:
    """In one fork, wait for the other and report its end. In the other, look as if just started
    from a shell."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
    asked: dict[str, Any] = json.loads(text)
    if pid := os.fork():
        for file in (*files, 0, 1):
            os.close(file)
        with suppress(OSError):
            connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):  # the process that asked may have ended
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if asked["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    return asked


def _run(program: list[str]) -> None:
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if program[0] == "-m":
        sys.argv = program[1:]
        sys.path[:1] = [str(Path.cwd()), *filter(None, paths)]
        runpy.run_module(program[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = program
        sys.path[:1] = [str(Path(program[0]).parent), *filter(None, paths)]
        runpy.run_path(program[0], run_name="__main__")


def _exit(code: str | int | None) -> NoReturn:
    """Do what the interpreter does at its end, except to free the libraries object by object, which
    takes longer than most of these programs."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1 if isinstance(code, str) else code or 0)


if __name__ == "__main__":
    _import_libraries(sys.argv[1])
    if (order := _serve(sys.argv[2])) is not None:
        try:
            _run(order["program"])
        except SystemExit as end:
            _exit(end.code)
        _exit(0)
