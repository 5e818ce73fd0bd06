"""Loads the tokenizer exactly as its file defines it.

transformers (5.23) rebuilds known tokenizers from the vocabulary, and drops other parts of
`tokenizer.json`, such as unusual normalizers. The text encoder was trained on the ids of the file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from wan_engine.errors import ConfigurationError

log = logging.getLogger(__name__)

_FILE = "tokenizer.json"
_PROMPTS = (
    "A rocket rises, slowly;  the camera follows.",
    "夜晚的城市，镜头缓慢推进。 Ｆｕｌｌ width, ﬁne ligatures",  # noqa: RUF001
    "Élodie’s naïve café №5 — cafe\u0301, 30 °C…\nΣίσυφος 🚀",  # noqa: RUF001
)
"""Texts to compare: spaces, Chinese, wide and composed letters, combining marks, lines, and
characters of no alphabet."""
_SPECIAL = ("pad_token", "eos_token", "unk_token")


def faithful(tokenizer: Any, folder: Path) -> Any:
    """`tokenizer`, or one made from the file in `folder` if their ids differ.

    Raises `ConfigurationError` if neither gives the ids of the file.
    """
    path = folder / _FILE
    if not path.is_file():
        return tokenizer  # made from another file
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_file(str(path))
    if _same(tokenizer, own):
        return tokenizer
    log.warning(
        "transformers changes the tokenizer %s/%s: the file is used as it is", folder.name, _FILE
    )
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    made = PreTrainedTokenizerFast(tokenizer_object=own, **special)
    if not _same(made, own):
        raise ConfigurationError(
            f"{folder.name}/{_FILE} has other ids than transformers reads from it. Fetch the "
            "model again, or install the transformers of requirements.txt"
        )
    return made


def _same(tokenizer: Any, own: Any) -> bool:
    return all(tokenizer(prompt).input_ids == own.encode(prompt).ids for prompt in _PROMPTS)
