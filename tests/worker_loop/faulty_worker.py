"""`handler.py` with a model that obeys the prompt: it raises the error of a broken GPU, or hangs.

The prompt is `<fault>`, or `<fault>, <probe>`. With the probe "broken", every later check of the
device fails; with "stuck", it never returns.
"""

from __future__ import annotations

import ctypes
import runpy
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from wan_engine.families.i2v import ImageToVideo  # noqa: E402

ERRORS: dict[str, Exception] = {
    "accelerator": torch.AcceleratorError("CUDA error: unspecified launch failure"),
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`"
    ),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "no room": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
}
_denoise = ImageToVideo.denoise


def denoise(self: ImageToVideo, segment: Any, on_step: Any) -> Any:
    fault, _, probe = segment.prompt.partition(", ")
    if probe:
        from wan_engine.runtime import faults

        faults._computes = lambda _: time.sleep(3600) if probe == "stuck" else False
    if fault == "hang":
        time.sleep(3600)
    if fault == "freeze":
        ctypes.PyDLL(None).sleep(3600)  # holding the interpreter's lock
    if fault in ERRORS:
        raise ERRORS[fault]
    return _denoise(self, segment, on_step)


ImageToVideo.denoise = denoise  # type: ignore[method-assign]
sys.argv = [str(ROOT / "handler.py")]
runpy.run_path(sys.argv[0], run_name="__main__")
