"""Makes tiny safety classifiers: the real transformers classes with weights set by hand, so that
every verdict is known.

`tiny-prompt-guard` is a one-layer Qwen3 that counts three words. `tiny-image-classifier` is a
one-layer ViT that measures how magenta a picture is. They are useless as protection. Tests use them
to run the code of real classifiers. A folder is a pure function of `checkpoints.RECIPE` and the
library versions.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

# --- the prompt guard ----------------------------------------------------------------------------

_VERDICTS = ("Safe", "Unsafe", "Controversial")
_CATEGORIES = (
    "None",
    "Violent",
    "Non-violent Illegal Acts",
    "Sexual Content or Sexual Acts",
    "PII",
    "Suicide & Self-Harm",
    "Unethical Acts",
    "Politically Sensitive Topics",
    "Copyright Violation",
    "Jailbreak",
)
_WORDS = ("forbidden", "risque", "elections")
"""Unsafe and violent; controversial and sexual; unsafe, politically sensitive and nothing else."""

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_ADDED = ("<think>", "</think>")  # not special, but the real tokenizer finds them as well

# How Qwen2 and Qwen3 split text into words (tokenizer.json of either).
_WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The structure of Qwen3Guard-Gen's template: the task is part of the user's turn, the prompt is in
# the middle of it, and the guard's turn is open at the end whatever add_generation_prompt says.
_CHAT_TEMPLATE = """\
{%- if messages[-1].role != 'user' %}{{ raise_exception('prompts only') }}{% endif -%}
<|im_start|>user
# Task:
Tell whether THE LAST USER's query is safe.

<BEGIN SAFETY POLICY>
**Safety: Safe**: The query asks for nothing that is prohibited.
<END SAFETY POLICY>

<BEGIN CONVERSATION>

USER: {{ messages[-1].content }}

<END CONVERSATION>

The first line must be one of 'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.
The second line should start with 'Categories:'.<|im_end|>
<|im_start|>assistant
<think>

</think>

"""

_WIDTH = 32
# The meaning of each channel of the guard's hidden state.
_CONSTANT = 0  # the same in every token
_WORD = 1  # three: which of _WORDS this token is
_SHARE = 4  # three: the share of each word among all tokens so far
_FOUND = 7  # three: the same, but only after a colon, where a verdict or a category follows
_MORE = 10  # after the last token of politics, when a list continues
_TOKEN = 11  # one for each token with a fixed successor, and for the colon

_ROLE = 3.0  # each new turn hides the words before it; the empty thought compensates for two


def prompt_guard(folder: Path) -> None:
    """Write the prompt guard to `folder`."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    _counting_model(tokenizer).save_pretrained(folder)


def _tokenizer() -> Any:
    """Byte-level BPE like Qwen's, with one token per word that matters and bytes for the rest."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    labels = {f"Ġ{word}" for label in (*_VERDICTS, *_CATEGORIES) for word in label.split()}
    # The pattern above splits `Non-violent` and `Self-Harm` at the hyphen.
    whole = sorted({part for label in labels for part in label.replace("-", " -").split()})
    vocabulary = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in (*whole, *_WORDS):
        for end in range(2, len(word) + 1):
            pair = word[: end - 1], word[end - 1]
            if pair not in merges:
                merges.append(pair)
                vocabulary.append(word[:end])
    backend = Tokenizer(
        models.BPE(vocab={token: index for index, token in enumerate(vocabulary)}, merges=merges)
    )
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_SPECIAL)})
    tokenizer.add_tokens(list(_ADDED))
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _counting_model(tokenizer: Any) -> Any:
    """Uniform attention (queries and keys are zero) gives every position the share of each word so
    far, the MLP lets it pass only after a colon, and the head turns it into verdict and category.

    A turn that a prompt opens itself reduces the share. So special tokens can fool this guard, and
    tests can show that they never reach it.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    def token(text: str) -> int:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert len(ids) == 1, f"{text!r} is {len(ids)} tokens"
        return int(ids[0])

    labels = [tokenizer(f" {label}").input_ids for label in _CATEGORIES]
    follows = {pair for ids in labels for pair in pairwise(ids)}
    follows.add((token(" Topics"), tokenizer.eos_token_id))
    channels = {
        index: _TOKEN + place
        for place, index in enumerate(sorted({token(":"), *(first for first, _ in follows)}))
    }
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        embedding = model.model.embed_tokens.weight  # [vocabulary, channel]
        embedding[:, _CONSTANT] = 1
        for index, channel in channels.items():
            embedding[index, channel] = 1
        for place, word in enumerate(_WORDS):
            embedding[token(word), _WORD + place] = 0.5
        embedding[token("<|im_start|>"), _WORD : _WORD + 3] = -_ROLE
        for added in _ADDED:
            embedding[token(added), _WORD : _WORD + 3] = _ROLE
        layer = model.model.layers[0]
        attention, mlp, head = layer.self_attn, layer.mlp, model.lm_head.weight
        for place in range(3):
            attention.v_proj.weight[place, _WORD + place] = 1
            attention.o_proj.weight[_SHARE + place, place] = 10
            mlp.gate_proj.weight[place, channels[token(":")]] = 1
            mlp.up_proj.weight[place, _SHARE + place] = 1
            mlp.down_proj.weight[_FOUND + place, place] = 16
        mlp.gate_proj.weight[3, channels[token(" Topics")]] = 1
        mlp.up_proj.weight[3, _SHARE : _SHARE + 2] = 1
        mlp.down_proj.weight[_MORE, 3] = 16
        head[token(" Safe"), _CONSTANT] = head[token(" None"), _CONSTANT] = 5
        forbidden, risque, elections = range(_FOUND, _FOUND + 3)
        head[token(" Unsafe"), forbidden] = head[token(" Unsafe"), elections] = 12
        head[token(" Controversial"), risque] = 10
        head[token(" Violent"), forbidden] = head[token(" Sexual"), risque] = 10
        head[token(" Politically"), elections] = 20  # the first of several categories
        head[token(","), _MORE] = 10
        for first, second in follows:
            head[second, channels[first]] = 10
    return model


# --- the image classifier ------------------------------------------------------------------------

_SIDE = 32
_PATCH = 8
_LARGE = 8.0  # next to it, a colour hardly changes the divisor of a layer norm
_MAGENTA = 3.0  # of 4 at most; pure red and pure blue are 2, photographs below 1
_STEEPNESS = 300.0


def image_classifier(folder: Path) -> None:
    """Write the image classifier to `folder`. `nsfw` is the label for pictures close to the
    strongest possible magenta."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    config = ViTConfig(
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        image_size=_SIDE,
        patch_size=_PATCH,
        id2label={0: "normal", 1: "nsfw"},
        label2id={"normal": 0, "nsfw": 1},
    )
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        # Channels: a large number, how magenta it is, and both with the other sign, so that a layer
        # norm subtracts nothing. Pixels are -1 to 1, so red + blue - 2 green is 4 at most.
        embeddings = model.vit.embeddings
        embeddings.cls_token[0, 0] = torch.tensor([_LARGE, -_LARGE, 0, 0])
        patches = embeddings.patch_embeddings.projection
        patches.bias[:] = torch.tensor([_LARGE, -_LARGE, 0, 0])
        mean = torch.tensor([1.0, -2.0, 1.0])[:, None, None] / _PATCH**2
        patches.weight[2], patches.weight[3] = mean, -mean
        attention = model.vit.layers[0].attention  # uniform: queries and keys are zero
        for channel in (2, 3):
            attention.v_proj.weight[channel, channel] = 1
            attention.o_proj.weight[channel, channel] = 1
        count = (_SIDE // _PATCH) ** 2
        border = _normed(_normed(_MAGENTA) * count / (count + 1))  # the class token has no colour
        model.classifier.weight[1, 2] = _STEEPNESS
        model.classifier.bias[1] = -_STEEPNESS * border
    model.save_pretrained(folder)
    size = {"height": _SIDE, "width": _SIDE}
    ViTImageProcessorPil(size=size).save_pretrained(folder)


def _normed(magenta: float) -> float:
    """The output of a layer norm for the channels (large, -large, magenta, -magenta)."""
    return float(magenta / ((_LARGE**2 + magenta**2) / 2) ** 0.5)
