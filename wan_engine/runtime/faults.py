"""Tells from an exception of torch whether the accelerator ran out of memory or may be broken, and
checks whether it still computes.

A CUDA context that failed once fails everything after it, so its process must end. cuBLAS, cuDNN,
NCCL and Triton raise a plain RuntimeError, so only the text tells the fault.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from wan_engine.errors import EngineError, OutOfMemory

log = logging.getLogger(__name__)

BROKEN_EXIT = 75
"""Exit code of a process that must be replaced by a new one: EX_TEMPFAIL (sysexits.h)."""

_OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP|cuDNN|cuBLAS|GPU|device)\b.{0,80}out of memory"
    r"|out of memory.{0,80}\b(CUDA|HIP|GPU|device)"
    r"|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT|HIPBLAS|ROCBLAS|MIOPEN)_STATUS_"
    r"(ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|ALLOCATION_FAILED|OUT_OF_MEMORY)"
    r"|(CUDA|cuda|hip|HIP)_?(ERROR|Error)_?(OUT_OF_MEMORY|OutOfMemory|MemoryAllocation)",
    re.IGNORECASE | re.DOTALL,
)
"""Texts of errors that leave the context intact: `cudaErrorMemoryAllocation`, and ALLOC_FAILED of
the libraries."""

_DEVICE = re.compile(
    r"\b(CUDA|HIP|NCCL|RCCL|Triton|cuDNN|cuBLAS\w*|cuSPARSE|cuSOLVER|cuFFT|cuRAND|MIOpen|NVRTC)"
    r"( \w+)? error"
    r"|\b(CUDA|CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CUFFT|CURAND|HIPBLAS|ROCBLAS|MIOPEN)"
    r"_(STATUS|ERROR)_|\bcudaError|\bhipError"
    r"|device-side assert|unspecified launch failure|illegal memory access"
    r"|misaligned address|illegal instruction|uncorrectable ECC|device kernel image is invalid"
    r"|GPU is lost|fallen off the bus",
    re.IGNORECASE,
)
_PROBE_SECONDS = 120.0  # kernels that were launched before run first: a forward pass on a slow card
_FAULTS_IN_A_ROW = 3
"""Number of consecutive jobs with a device fault after which the device counts as broken, even if
it answers: a library that fails at every job is broken in this process only."""


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and the errors that it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _named(error: BaseException, name: str) -> bool:
    """Whether `error` is an instance of torch's class `name`, without importing torch."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the accelerator ran out of memory. The context is intact then."""
    if isinstance(error, EngineError):
        return isinstance(error, OutOfMemory)
    if _named(error, "OutOfMemoryError"):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def is_device_fault(error: BaseException) -> bool:
    """Whether the accelerator or one of its libraries failed for another reason than memory, in
    this error or in its causes."""
    return any(
        # All types that torch and Triton raise. Texts from a caller come in other types.
        isinstance(one, RuntimeError)
        and (_named(one, "AcceleratorError") or _DEVICE.search(str(one)) is not None)
        and not is_out_of_memory(one)
        for one in chain(error)
        if not isinstance(one, EngineError)
    )


def device_answers(device: str, seconds: float = _PROBE_SECONDS) -> bool:
    """Whether `device` still computes: a matrix product, a convolution, and a synchronization. They
    run in a thread, because a broken device may never answer. True without torch or without a GPU
    in use."""
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: found.append(_computes(device)), name="probe", daemon=True
    )
    thread.start()
    thread.join(seconds)
    return found == [True]


def _computes(device: str) -> bool:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        ones = torch.ones(1, 1, 16, 16, device=device if device.startswith("cuda") else "cuda")
        total = (ones @ ones).sum() + torch.nn.functional.conv2d(ones, ones).sum()
        right = bool(total.item() == 16**3 + 16**2)
        torch.cuda.synchronize(ones.device)
        return right
    except Exception as error:
        log.exception("the device does not answer")
        return is_out_of_memory(error)


class Device:
    """Judges the device of one process by how its jobs end. Thread-safe."""

    def __init__(self, name: str) -> None:
        """`name` as in WAN_DEVICE."""
        self._name = name
        self._faults = 0

    def worked(self) -> None:
        """Record a job that succeeded."""
        self._faults = 0

    def broke(self, error: BaseException) -> bool:
        """Whether the device is broken after a job that failed with `error`. If it is, no later job
        can work in this process."""
        fault = is_device_fault(error)
        if not fault and isinstance(error, EngineError):
            return False
        # Checked after any other error too: not all texts are known.
        answers = device_answers(self._name)
        if not fault:
            return not answers
        self._faults += 1
        if answers and self._faults < _FAULTS_IN_A_ROW:
            log.warning("the device failed during a job, but it answers: the next job may work")
            return False
        log.critical("the device is broken: this process ends")
        return True
