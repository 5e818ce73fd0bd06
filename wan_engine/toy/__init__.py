"""Makes the tiny checkpoints on this machine, in seconds and without a download.

`wan-tiny` is the model of `auto` without a GPU, a trained toy. The others are test doubles that run
through the code for real checkpoints. No list of models shows them (`doubles.py`).
"""

from wan_engine.toy.cache import cached
from wan_engine.toy.checkpoints import build
from wan_engine.toy.doubles import CLASSIFIERS, MODELS, WRITERS

__all__ = ["CLASSIFIERS", "MODELS", "WRITERS", "build", "cached"]
