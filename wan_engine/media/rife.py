"""RIFE 4.26 through ccvfi: a small network that interpolates between two frames, on the engine's
device.

torch and ccvfi are imported on first use. The weights come from a file that the operator names.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wan_engine.errors import ConfigurationError, OutOfMemory
from wan_engine.runtime.faults import is_out_of_memory
from wan_engine.runtime.finite import require_finite

_MULTIPLE = 64  # the coarsest of five pyramid levels is 1/16, in blocks of 4 (ifnet_arch.py)


def check(weights: Path | None) -> None:
    """Raise `ConfigurationError` unless the package can be imported and the file is there."""
    if weights is None:
        raise ConfigurationError(
            "WAN_INTERPOLATION is `rife`, which needs WAN_RIFE_WEIGHTS: the path of "
            "RIFE_IFNet_v426_heavy.pkl (releases of EutropicAI/ccvfi on GitHub)."
        )
    if not weights.is_file():
        raise ConfigurationError(f"WAN_RIFE_WEIGHTS names {weights}, which is not a file")
    try:
        import_module("ccvfi")
    except (ImportError, RuntimeError, OSError) as error:  # a torchvision for another torch, libGL
        raise ConfigurationError(
            f"RIFE needs the package ccvfi ({error}): pip install -r requirements-extra.txt, or "
            "unset WAN_RIFE_WEIGHTS."
        ) from error


class Rife:
    """The loaded network. It runs in float32, because its coordinates in half precision are off by
    half a pixel of a 1080p frame."""

    def __init__(self, weights: Path, device: str) -> None:
        """Raises `ConfigurationError` if the file does not contain this network."""
        import torch
        from ccvfi import AutoModel, ConfigType  # type: ignore[import-not-found,unused-ignore]
        from ccvfi.config.rife_config import (  # type: ignore[import-not-found,unused-ignore]
            RIFEConfig,
        )

        config = RIFEConfig(name=ConfigType.RIFE_IFNet_v426_heavy, path=weights, in_frame_count=2)
        self._device = torch.device(device)
        try:
            self._model: Any = AutoModel.from_config(config, self._device, fp16=False)
            names = {name.replace("module.", "") for name in self._model.get_state_dict()}
        except Exception as error:  # torch.load raises almost any exception for a foreign file
            if is_out_of_memory(error):
                raise OutOfMemory("The worker has too little GPU memory for RIFE") from error
            raise _not_rife(weights) from error
        # The package loads the weights that fit, and leaves the others random.
        if missing := set(self._model.model.state_dict()) - names:
            raise _not_rife(weights) from KeyError(min(missing))

    def between(
        self, earlier: NDArray[np.uint8], later: NDArray[np.uint8], weight: float
    ) -> NDArray[np.uint8]:
        """The frame at `weight` of the way, uint8 [height, width, 3]. Raises `OutOfMemory` and
        `NotFinite`."""
        import torch
        from torch.nn.functional import pad

        height, width = earlier.shape[:2]
        try:
            pixels = torch.from_numpy(np.stack([earlier, later])).to(self._device)
            pair = pixels.permute(0, 3, 1, 2).float().div(255)  # [2, 3, h, w]
            # The package would stretch frames to the multiple, which blurs them.
            pair = pad(pair, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="replicate")
            made = self._model.inference(pair[None], weight, 1.0)[0, :, :height, :width]
            require_finite(made, "RIFE")
            made = made.clamp(0, 1).mul(255).round_().to(torch.uint8)
            frame: NDArray[np.uint8] = made.permute(1, 2, 0).cpu().numpy()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory("The worker has too little GPU memory for RIFE") from error
        return frame

    def forget(self) -> None:
        """Free the grids that the package keeps for every size it has seen."""
        import_module("ccvfi.arch.arch_utils.warplayer").backwarp_tenGrid.clear()


def _not_rife(weights: Path) -> ConfigurationError:
    return ConfigurationError(
        f"WAN_RIFE_WEIGHTS names {weights}, which does not hold RIFE 4.26 heavy: fetch "
        "RIFE_IFNet_v426_heavy.pkl from the releases of EutropicAI/ccvfi on GitHub."
    )
