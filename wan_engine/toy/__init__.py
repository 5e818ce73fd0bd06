"""Makes the tiny checkpoints on this machine, in seconds and without a download.

`wan-tiny` is what `auto` takes where there is no GPU: trained, as a toy. The rest are test doubles,
which the code for real checkpoints runs on; no list of models shows them (`doubles.py`).
"""

from wan_engine.toy.cache import cached
from wan_engine.toy.checkpoints import build
from wan_engine.toy.doubles import CLASSIFIERS, MODELS, WRITERS

__all__ = ["CLASSIFIERS", "MODELS", "WRITERS", "build", "cached"]
