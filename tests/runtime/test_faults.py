"""What a torch exception says about the device, and what happens if the device may be broken."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from wan_engine.errors import ConfigurationError, EncodeFailed, EngineError, InvalidMedia
from wan_engine.runtime import faults

NO_MEMORY = [
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.6 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUDNN_BACKEND_TENSOR_DESCRIPTOR cudnnFinalize failed: CUDNN_STATUS_ALLOC_FAILED",
]
BROKEN = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: device-side assert triggered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN Frontend error: [cudnn_frontend] Error: No valid engine configs",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR",
    "cuFFT error: CUFFT_INTERNAL_ERROR",
    "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1234",
    "NCCL Error 1: unhandled cuda error",
    "HIP error: invalid device function",
    "Triton Error [CUDA]: device kernel image is invalid",
    "CUDA driver error: unknown error",
    "CUDA error: uncorrectable ECC error encountered",
    "transform: failed to synchronize: cudaErrorIllegalAddress: an illegal memory access",
]
OTHER = [
    "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)",
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu",
    "The size of tensor a (3) must match the size of tensor b (4)",
    "[Errno 28] No space left on device",
    "out of memory",  # it is not clear whose fault it is
]


@pytest.mark.parametrize("text", NO_MEMORY)
def test_out_of_memory_is_recognised_by_its_text(text: str) -> None:
    error = RuntimeError(text)
    assert faults.is_out_of_memory(error) and not faults.is_device_fault(error)


@pytest.mark.parametrize("text", BROKEN)
def test_a_device_fault_is_recognised_by_its_text(text: str) -> None:
    error = RuntimeError(text)
    assert faults.is_device_fault(error) and not faults.is_out_of_memory(error)


@pytest.mark.parametrize("text", OTHER)
def test_another_bug_is_neither(text: str) -> None:
    error = RuntimeError(text)
    assert not faults.is_device_fault(error) and not faults.is_out_of_memory(error)


def test_torchs_own_classes_are_recognised_whatever_their_text() -> None:
    torch = pytest.importorskip("torch")
    assert faults.is_out_of_memory(torch.OutOfMemoryError("x"))
    assert faults.is_device_fault(torch.AcceleratorError("x"))
    assert faults.is_out_of_memory(torch.AcceleratorError("CUDA error: out of memory"))


def raised_from(cause: Exception, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_fault_that_caused_another_error_is_found() -> None:
    cause = RuntimeError(BROKEN[0])
    assert faults.is_device_fault(raised_from(cause, KeyError("x")))
    assert faults.is_device_fault(raised_from(cause, EncodeFailed("The clip could not be encoded")))
    assert not faults.is_device_fault(raised_from(RuntimeError(OTHER[0]), KeyError("x")))


def test_our_own_errors_are_no_device_fault() -> None:
    assert not faults.is_device_fault(ConfigurationError("CUDA error: read the README"))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def set_to(answer: bool) -> None:
        monkeypatch.setattr(faults, "_computes", lambda _: answer)

    return set_to


def test_a_device_that_answers_is_not_broken_after_one_failed_job(
    answers: Callable[[bool], None],
) -> None:
    answers(True)
    device = faults.Device("cuda")
    for _ in range(5):
        assert not device.broke(RuntimeError(BROKEN[0]))
        device.worked()


def test_a_device_on_which_job_after_job_fails_is_broken(
    answers: Callable[[bool], None],
) -> None:
    answers(True)
    device = faults.Device("cuda")
    verdicts = [device.broke(RuntimeError(text)) for text in BROKEN[3:6]]
    assert verdicts == [False, False, True]


def test_a_device_that_does_not_answer_is_broken_whatever_the_text(
    answers: Callable[[bool], None],
) -> None:
    answers(False)
    assert faults.Device("cuda").broke(RuntimeError("something that nobody has read before"))
    assert not faults.Device("cuda").broke(EngineError("a caller's fault"))


def test_a_device_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(faults, "_computes", lambda _: never.wait(60))
    assert not faults.device_answers("cuda", seconds=0.05)
    never.set()


def test_without_a_gpu_in_use_there_is_nothing_to_break() -> None:
    assert faults.device_answers("cpu") and faults.device_answers("auto")


@pytest.mark.gpu
def test_a_working_gpu_answers() -> None:
    torch = pytest.importorskip("torch")
    torch.ones(1, device="cuda")
    assert faults.device_answers("cuda")


def test_text_of_a_stranger_is_no_device_fault() -> None:
    """An image server may answer with any text."""
    error = ConnectionError("Connection aborted.", "CUDA error: illegal memory access")
    assert not faults.is_device_fault(error)
    outer = InvalidMedia("image", "the connection failed")
    outer.__cause__ = error
    assert not faults.is_device_fault(outer)
