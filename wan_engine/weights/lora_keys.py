"""Parses the keys of a LoRA file: which layer of a Wan transformer each one changes, and how.

Trainers write the same change under many names. A key consists of a prefix, the name of a layer,
and the role of the tensor in the layer. Each of the three has several spellings.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from wan_engine.weights.lora_file import Header, Shape, Tensor

Side = Literal["any", "low"]
"""The expert that a key's prefix names: the low-noise one, or none."""

_PREFIX = re.compile(
    r"(?:(?:base_model|model|diffusion_model|transformer(?:_2)?|unet|pipe|dit2?|module|_orig_mod)\."
    r"|(?:lora_unet|lora_transformer(?:_2)?|lycoris)_)*"
)
"""Prefixes of a layer's name: of ComfyUI, diffusers, peft, DiffSynth and torch's wrappers, and with
underscores of kohya's sd-scripts, musubi-tuner and LyCORIS."""
_LOW = re.compile(r"(?:transformer_2|dit2)[._]")

_NAME = r"(?:\.(?!(?:weight|bias)$)[\w-]+)?"  # name of a peft adapter, such as `default`
_ROLES = tuple(
    (role, re.compile(rf"(?P<layer>.+?){pattern}$"))
    for role, pattern in (
        (
            "down",
            rf"(?:\.lora_(?:A|down)|[._]lora\.down|\.lora_linear_layer\.down){_NAME}(?:\.weight)?",
        ),
        ("up", rf"(?:\.lora_(?:B|up)|[._]lora\.up|\.lora_linear_layer\.up){_NAME}(?:\.weight)?"),
        ("up_bias", rf"(?:\.lora_(?:B|up)|[._]lora\.up){_NAME}\.bias"),
        ("mid", r"\.lora_mid(?:\.weight)?"),
        ("magnitude", rf"\.(?:dora_scale|lora_magnitude_vector){_NAME}(?:\.weight)?"),
        ("weight", r"\.(?:diff|w_norm)"),
        ("bias", r"\.(?:diff_b|b_norm)"),
        ("modulation", r"\.diff_m"),
        ("alpha", r"\.(?:lora_)?alpha"),
        ("rank", r"\.(?:lora_)?rank"),
        *((name, rf"\.{name}") for one in "12" for name in (f"hada_w{one}_a", f"hada_w{one}_b")),
        *(
            (f"lokr_w{one}{end}", rf"\.lokr_w{one}{end}")
            for one in "12"
            for end in ("", "_a", "_b")
        ),
    )
)
"""The spellings of each kind of tensor: of peft and diffusers (`lora_A`), kohya (`lora_down`),
older diffusers (`lora.down`, `to_q_lora.down`), LightX2V and ComfyUI (`diff`, `diff_b`, `diff_m`),
LyCORIS (`w_norm`, `hada_`, `lokr_`, `dora_scale`)."""

_NO_WEIGHTS = ("alpha", "rank")
_PAIR = ("down", "up", "up_bias", "mid")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

_UNKNOWN = (
    (r"\.(?:oft|boft)_", "OFT, which is not supported"),
    (r"\.(?:hada_t|lokr_t)\d", "a LoHa or LoKr in Tucker form, which is not supported"),
    (r"\.(?:a1|a2|b1|b2)\.weight$", "GLoRA, which is not supported"),
    (r"\.(?:ia3_l|on_input)", "IA3, which is not supported"),
    (r"\.(?:vera_lambda_|lora_xs|lora_ga)", "a kind of adapter that is not supported"),
    (r"\.(?:set_weight|weight|bias|modulation|scale_shift_table)$", "a whole weight, not a change"),
    (r"scale", "a scale of quantized numbers, which is not supported"),
)
"""The description of a key without a known role, by its ending."""

_ORIGINAL = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_([qkv])$", r".\1"),
        (r"\.to_out\.0$", ".o"),
        (r"\.add_([kv])_proj$", r".\1_img"),
        (r"\.norm_added_k$", ".norm_k_img"),
        (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
        (r"\.ffn\.net\.2$", ".ffn.2"),
        (r"^(blocks\.\d+)\.norm2$", r"\1.norm3"),
        (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
        (r"^scale_shift_table$", "head.modulation"),
        (r"^proj_out$", "head.head"),
        (r"^condition_embedder\.(time|text)_embedder\.linear_1$", r"\1_embedding.0"),
        (r"^condition_embedder\.(time|text)_embedder\.linear_2$", r"\1_embedding.2"),
        (r"^condition_embedder\.time_proj$", "time_projection.1"),
        (r"^condition_embedder\.image_embedder\.norm1$", "img_emb.proj.0"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
        (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
        (r"^condition_embedder\.image_embedder\.norm2$", "img_emb.proj.4"),
        (r"^condition_embedder\.image_embedder\.pos_embed$", "img_emb.emb_pos"),
    )
)
"""Layer names of diffusers, and their names in Wan's own code
(`convert_wan_transformer_to_diffusers` in diffusers). The norms 2 and 3 are exchanged, and only one
of them has weights."""

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Change:
    """The change of one layer. `weight` and `bias` are names of parameters, or None if the layer
    has none; `keys` are the file's, by role."""

    layer: str
    weight: str
    bias: str | None
    keys: Mapping[str, str]

    @property
    def kind(self) -> str:
        """The kind of change in one word, for messages."""
        if "magnitude" in self.keys:
            return "DoRA"
        if "hada_w1_a" in self.keys:
            return "LoHa"
        if any(role.startswith("lokr") for role in self.keys):
            return "LoKr"
        return "low-rank" if "down" in self.keys else "differences"


@dataclass
class Reading:
    """The result of matching a file with a network: the changes, and for every other key the reason
    why it has none."""

    changes: list[Change] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def read_keys(header: Header, parameters: Mapping[str, Tensor], *, low: bool) -> Reading:
    """Sort the keys of a file by the layers of a network with these parameters. `low` says whether
    it is the low-noise expert. A layer is changed as a whole or not at all."""
    two = any(side_of(key) == "low" for key in header.tensors)
    reading, layers = Reading(), Layers(parameters)
    found: dict[str, dict[str, str]] = {}
    faults: dict[str, str] = {}
    for key in header.tensors:
        # If a file has both experts, each takes its own keys.
        if two and (side_of(key) == "low") != low:
            reading.refused[key] = "it is for the other expert"
            continue
        layer, role = layers.place(key)
        if layer is None:
            reading.refused[key] = role
            continue
        keys = found.setdefault(layer, {})
        if role not in _KNOWN:
            faults[layer] = role
        elif role in keys:
            faults[layer] = f"it is there twice, as {keys[role]} too"
        keys[f"{role} of {key}" if role in keys else role] = key
    for layer, keys in found.items():
        change = layers.change(layer, keys)
        why = faults.get(layer) or _fault(change, header.tensors, parameters)
        if why:
            reading.refused.update(dict.fromkeys(keys.values(), why))
        elif any(role not in _NO_WEIGHTS for role in keys):
            reading.changes.append(change)
    return reading


_KNOWN = tuple(role for role, _ in _ROLES)


def side_of(key: str) -> Side:
    """Whether the key's prefix names the low-noise expert."""
    prefix = _PREFIX.match(key)
    return "low" if prefix and _LOW.search(prefix[0]) else "any"


def is_weight(key: str) -> bool:
    """Whether the key counts as a weight. An alpha or a rank does not."""
    return _split(key)[1] not in _NO_WEIGHTS


def shown(keys: Iterable[str], most: int | None = None) -> str:
    """At most `most` keys for messages. Keys that differ only in the block's number count as
    one."""
    counted = Counter(re.sub(r"(blocks[._])\d+", r"\1*", key) for key in keys)
    names = [f"{key} ({count})" if count > 1 else key for key, count in counted.items()]
    return ", ".join(names[:most]) + (" ..." if len(names) > len(names[:most]) else "")


class Layers:
    """The layers of a network, by every name that trainers use for them."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._names: dict[str, str] = {}
        for parameter in parameters:
            layer = re.sub(r"\.(weight|bias)$", "", parameter)
            for name in (layer, original(layer), layer.removesuffix(".0")):
                self._names.setdefault(_flat(name), layer)

    def place(self, key: str) -> tuple[str | None, str]:
        """The layer and the role of a key, or None and the reason. An unknown role is described in
        words."""
        stem, role = _split(key)
        if role is None:
            words = next((why for end, why in _UNKNOWN if re.search(end, stem)), "of no known kind")
            while stem and not self._find(stem):
                stem = stem.rpartition(".")[0]
            return (self._find(stem), f"it is {words}") if stem else (None, f"it is {words}")
        if role == "modulation":
            stem, role = f"{stem}.modulation", "weight"
        if layer := self._find(stem):
            return layer, role
        if re.match(r"(lora_te|text_encoder|conditioner|cond_stage)", key):
            return None, "it is for a text encoder, which is left as it is"
        return None, "this model has no such layer"

    def change(self, layer: str, keys: Mapping[str, str]) -> Change:
        """The change that `keys` make to a layer."""
        weight, bias = f"{layer}.weight", f"{layer}.bias"
        return Change(
            layer,
            weight if weight in self._parameters else layer,
            bias if bias in self._parameters else None,
            keys,
        )

    def _find(self, stem: str) -> str | None:
        prefix = _PREFIX.match(stem)
        assert prefix is not None
        name = stem[prefix.end() :].replace(".processor.", ".")
        return self._names.get(_flat(name))


def original(layer: str) -> str:
    """The name in Wan's own code of a layer of diffusers' network."""
    for pattern, name in _ORIGINAL:
        layer = pattern.sub(name, layer)
    return layer


def _split(key: str) -> tuple[str, str | None]:
    for role, pattern in _ROLES:
        if match := pattern.match(key):
            return match["layer"], role
    return key, None


def _flat(name: str) -> str:
    return name.replace(".", "_")


# --- shape checks --------------------------------------------------------------------------------


def _fault(change: Change, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> str:
    """The reason why a change cannot be applied; empty if it can."""
    of = {role: tensors[key] for role, key in change.keys.items()}
    return (
        _stored(of)
        or _incomplete(of)
        or _misfit(of, change, parameters[change.weight].shape)
        or _bias_fault(of, change, parameters)
    )


def _stored(of: Mapping[str, Tensor]) -> str:
    for role, tensor in of.items():
        if 0 in tensor.shape:
            return f"its {role} is empty"
        if role in _NO_WEIGHTS:
            continue
        if not tensor.shape:
            return f"its {role} is a single number"
        if tensor.dtype not in _FLOATS:
            return f"its {role} is stored as {tensor.dtype}, which is not supported"
    return ""


def _incomplete(of: Mapping[str, Tensor]) -> str:
    if any(role in of for role in _PAIR) and not {"down", "up"} <= set(of):
        missing = "up" if "down" in of else "down"
        return f"its other half, {missing}, is missing"
    if any(role in of for role in _LOHA) and not set(_LOHA) <= set(of):
        return "it is a LoHa without all of its four matrices"
    if any(role.startswith("lokr") for role in of) and not all(
        f"lokr_w{one}" in of or {f"lokr_w{one}_a", f"lokr_w{one}_b"} <= set(of) for one in "12"
    ):
        return "it is a LoKr without all of its matrices"
    others = any(role in _LOHA or role.startswith("lokr") for role in of)
    if "magnitude" in of and ("down" not in of or "weight" in of or others):
        return "it is a DoRA over something else than a low-rank pair"
    if math.prod(of["lokr_w1"].shape[2:] if "lokr_w1" in of else ()) != 1:
        return "it is a LoKr whose first matrix has more than two axes"
    if "alpha" in of and math.prod(of["alpha"].shape) != 1:
        return "its alpha is not one number"
    return ""


def _misfit(of: Mapping[str, Tensor], change: Change, shape: Shape) -> str:
    """The reason if matrices do not multiply to a weight of `shape`."""
    rows, columns = shape[0], math.prod(shape[1:])
    for what, size in _products(of):
        if size != (rows, columns):
            made = f"{size[0]} x {size[1]}" if size else "nothing, for their inner sides differ"
            return (
                f"its {what} gives {made}, and {change.weight} is {rows} x {columns} {_text(shape)}"
            )
    if "weight" in of and _squeezed(of["weight"].shape) != _squeezed(shape):
        return f"its shape is {_text(of['weight'].shape)}, and {change.weight} is {_text(shape)}"
    if "magnitude" in of and axis_of(of["magnitude"].shape, shape) is None:
        given = _text(of["magnitude"].shape)
        return f"its magnitude is {given}, and {change.weight} is {_text(shape)}"
    return ""


def axis_of(magnitude: Shape, weight: Shape) -> Literal[0, 1] | None:
    """The axis of a weight that a DoRA's magnitudes belong to: the output in peft and LyCORIS, or
    the input, as a row, in older LyCORIS. None if they fit neither."""
    if magnitude and magnitude[0] == math.prod(magnitude) == weight[0]:
        return 0
    return 1 if len(weight) == 2 and magnitude == (1, weight[1]) else None


def _products(of: Mapping[str, Tensor]) -> Iterable[tuple[str, Shape | None]]:
    if "down" in of:
        yield "low-rank pair", _pair_shape(of)
    if "hada_w1_a" in of:
        first, second = (_product(of[f"hada_w{one}_a"], of[f"hada_w{one}_b"]) for one in "12")
        yield "LoHa", first if first == second else None
    if any(role.startswith("lokr") for role in of):
        first, second = (_kronecker_part(of, one) for one in "12")
        yield "LoKr", (first[0] * second[0], first[1] * second[1]) if first and second else None


def _pair_shape(of: Mapping[str, Tensor]) -> Shape | None:
    up, down = _matrix(of["up"].shape), _matrix(of["down"].shape)
    if "mid" not in of:
        return (up[0], down[1]) if up[1] == down[0] else None
    mid = of["mid"].shape
    if len(mid) < 2 or (up[1], down[0]) != mid[:2]:
        return None
    return up[0], down[1] * math.prod(mid[2:])


def _kronecker_part(of: Mapping[str, Tensor], one: str) -> Shape | None:
    if (whole := of.get(f"lokr_w{one}")) is not None:
        return _matrix(whole.shape)
    return _product(of[f"lokr_w{one}_a"], of[f"lokr_w{one}_b"])


def _product(left: Tensor, right: Tensor) -> Shape | None:
    first, second = _matrix(left.shape), _matrix(right.shape)
    return (first[0], second[1]) if first[1] == second[0] else None


def _bias_fault(of: Mapping[str, Tensor], change: Change, parameters: Mapping[str, Tensor]) -> str:
    for role in ("bias", "up_bias"):
        if role not in of:
            continue
        if change.bias is None:
            return f"{change.layer} has no bias"
        if _squeezed(of[role].shape) != _squeezed(parameters[change.bias].shape):
            shape = parameters[change.bias].shape
            return f"its bias is {_text(of[role].shape)}, and {change.bias} is {_text(shape)}"
    return ""


def _matrix(shape: Shape) -> Shape:
    """Rows and columns of a weight. A convolution has its outputs as rows and the rest as
    columns."""
    return (shape[0], math.prod(shape[1:])) if shape else (1, 1)


def _squeezed(shape: Shape) -> Shape:
    return tuple(side for side in shape if side != 1)


def _text(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
