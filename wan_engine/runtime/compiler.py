"""Tells whether this machine can compile the code that torch generates, by compiling something.

On a GPU, torch generates Triton code, whose driver is a C extension that is compiled for the first
kernel. On a CPU it generates C++. Both include Python's headers.
"""

from __future__ import annotations

import ctypes
import getpass
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import Any

from wan_engine.errors import EngineError
from wan_engine.runtime.faults import chain, is_device_fault
from wan_engine.settings.environment import of_tools

_SECONDS = 60
_ANSWER = 42
_SOURCE = f"""
#include <Python.h>
#ifdef __cplusplus
#include <vector>
extern "C" int answer(void) {{ return std::vector<int>({_ANSWER}).size(); }}
#else
int answer(void) {{ return {_ANSWER}; }}
#endif
"""
_COMPILERS = ("/torch/_dynamo/", "/torch/_inductor/", "/triton/")
_INSTALL = "install gcc, g++ and Python's headers"
_NOT_LOADED = re.compile("kernel image|unsupported toolchain|PTX JIT", re.IGNORECASE)
"""Source of an empty kernel. The driver refuses to load it, and the device stays as it was."""


class _Cannot(Exception):
    """Raised when nothing can be compiled. The text says what is missing."""


@cache
def problem(device: str) -> str | None:
    """The reason why code for `device` ("cuda", "cuda:1", "cpu") cannot be compiled here, or None
    if it can.

    Takes about half a second, once per process.
    """
    try:
        if device == "cpu":
            _compile(_cxx(), ".cpp", _inductor_folder())
        else:
            if importlib.util.find_spec("triton") is None:
                raise _Cannot("package triton is not installed")
            for folder in (_triton_folder(), _inductor_folder()):  # Triton writes into both folders
                _compile(_cc(), ".c", folder)
    except _Cannot as error:
        return str(error)
    return None


def _cc() -> str:
    """The compiler that Triton takes (runtime/build.py of triton 3)."""
    found = of_tools("CC") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise _Cannot(f"there is no C compiler: {_INSTALL}")
    return found


def _cxx() -> str:
    """The compiler that inductor takes (torch/_inductor/config.py, `cpp.cxx`)."""
    found = shutil.which(of_tools("CXX") or "g++")
    if found is None:
        raise _Cannot(f"there is no C++ compiler: {_INSTALL}")
    return found


def _triton_folder() -> Path:
    home = Path(of_tools("TRITON_HOME") or Path.home()) / ".triton"
    return Path(of_tools("TRITON_CACHE_DIR") or home / "cache")


def _inductor_folder() -> Path:
    """Inductor's cache folder (torch/_inductor/runtime/cache_dir_utils.py)."""
    if named := of_tools("TORCHINDUCTOR_CACHE_DIR"):
        return Path(named)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a uid without a name
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / f"torchinductor_{user}"


def _compile(compiler: str, ending: str, parent: Path) -> None:
    """Compile and load a library in a new folder of `parent`. Raises `_Cannot`."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wan-probe-", dir=parent) as folder:
            source, library = Path(folder) / f"probe{ending}", Path(folder) / "probe.so"
            source.write_text(_SOURCE)
            _run([compiler, *_OPTIONS, str(source), "-o", str(library)])
            _load(library)
    except OSError as error:
        raise _Cannot(f"{parent} cannot be written ({error.strerror})") from error


_OPTIONS = ("-O1", "-shared", "-fPIC", f"-I{sysconfig.get_paths()['include']}")


def _run(command: list[str]) -> None:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _Cannot(f"{command[0]} cannot be run ({error.strerror})") from error
    with process:
        try:
            _, told = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)  # gcc starts other processes, which do the work
            raise _Cannot(f"{command[0]} did not end within {_SECONDS} seconds") from error
    if process.returncode != 0:
        said = [line for line in told.splitlines() if "error" in line.lower()]
        why = said[0].strip() if said else f"it ended with status {process.returncode}"
        raise _Cannot(f"{command[0]} fails ({why}): {_INSTALL}")


def _load(library: Path) -> None:
    try:
        answer = ctypes.CDLL(str(library)).answer()
    except (OSError, AttributeError) as error:
        raise _Cannot(
            f"code compiled in {library.parent.parent} cannot be loaded: is it mounted noexec?"
        ) from error
    if answer != _ANSWER:
        raise _Cannot("compiled code gives wrong results")


def failed_in_compiled_code(error: BaseException) -> bool:
    """Whether `error` or its cause was raised while blocks were compiled, or by compiled code. The
    types are many and not only torch's: a C compiler, a disk, Triton. False if the device is
    broken, because then uncompiled blocks fail as well."""
    if isinstance(error, EngineError):
        return False
    if is_device_fault(error) and not _NOT_LOADED.search(str(error)):
        return False
    return any(
        part in frame.f_code.co_filename
        for one in chain(error)
        for frame, _ in traceback.walk_tb(one.__traceback__)
        for part in _COMPILERS
    )


def reason(error: BaseException) -> str:
    """The kind and first line of an error, and the last line of a compiler's output."""
    error = getattr(error, "inner_exception", None) or error  # inductor's own text says little
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [type(error).__name__, *lines[:1]]
    if "Output:" in lines[:-1]:
        told.append(lines[-1])
    return ": ".join(told)[:300]


def leave_uncompiled(network: Any) -> None:
    """Make the blocks of a network run uncompiled from now on."""
    for module in network.modules():
        module._compiled_call_impl = None
