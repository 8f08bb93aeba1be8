"""Which tensors a model may leave unread: buffers, by number type or by name. Any other unknown tensor is an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ....runtime.engine_file.info import drafting, left_out
from ....runtime.files.safetensors import TensorInfo
from ...families.spec import DecoderSpec

_SHOWN = 6
"""Groups of names that a warning lists."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_TABLES = frozenset(
    ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "cos_cache", "sin_cache", "freqs_cis", "rope.freqs")
)
"""Tables of rotary embeddings that exporters saved, by the end of their names."""
_BUFFERS = frozenset(("position_ids", "masked_bias", "causal_mask", "attention_mask"))
"""Buffers that old classes of transformers registered as persistent, also in floating point."""
_MASKS = (".attn.bias", ".attention.bias", ".self_attn.bias")
"""Names of causal masks [1, 1, n, n]. No family's attention has a bias of its own: only its linears have."""
_NO_WEIGHTS = frozenset(("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "C64"))
"""Number types that no parameter of a float model has. 8-bit and 4-bit floats are not among them: those are weights or
scales of a quantized model."""
ROPE = "rope tables are computed from the configuration"
TIED = "bit-equal to the tied embedding"
_DRAFTS = re.compile(r"(?P<module>(?:model\.|language_model\.)*(?:mtp(?:_[a-z_]+)?|layers\.(?P<layer>\d+)))\.")
"""Of what drafts tokens: modules of its own, or layers after the last one, of which a config says how many."""
_OF_CACHES = re.compile(r"self_attn\.(k_proj|v_proj|k_norm)\.(weight|bias)")
"""What makes keys and values: Gemma 4's files have it in layers that take those of another layer, too."""


def why_named(name: str, shape: tuple[int, ...] | None, spec: DecoderSpec) -> str | None:
    """Why a tensor of this name is not read, whatever its type; None if the name says nothing."""
    if any(name == end or name.endswith(f".{end}") for end in _TABLES):
        return ROPE
    if name == f"{spec.head}.weight" and spec.tied:
        return TIED
    shared = {index: source for index, layer in enumerate(spec.layers) if (source := layer.mixer.source) is not None}
    for index, source in shared.items():
        prefix = spec.layer.format(index)
        if name.startswith(prefix) and _OF_CACHES.fullmatch(name.removeprefix(prefix)):
            return f"layer {index} attends to the keys and values of layer {source}"
    for module, why in spec.left_out:
        if re.search(rf"\.\d+\.{re.escape(module)}\.", name):
            return why
    mask = shape is not None and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    if name.rpartition(".")[2] in _BUFFERS or (mask and name.endswith(_MASKS)):
        return "a buffer that the model computes"
    return None


def why_unread(info: TensorInfo, spec: DecoderSpec) -> str | None:
    """Why a tensor that the decoder does not name may be left unread; None if it could matter."""
    integers = f"a buffer of {info.dtype}, which no weight is" if info.dtype in _NO_WEIGHTS else None
    return why_named(info.name, info.shape, spec) or integers


def part_of(name: str, parts: Mapping[str, str], spec: DecoderSpec) -> str | None:
    """Of a tensor that belongs to a part beside the text model, or to layers that draft tokens: that module, as the
    files spell it."""
    bare = name.removeprefix("model.")
    module = bare.partition(".")[0]
    if module in parts:
        return name.removesuffix(bare) + module
    found = _DRAFTS.match(name)
    layers = range(len(spec.layers), len(spec.layers) + spec.drafts)
    return found["module"] if found and (found["layer"] is None or int(found["layer"]) in layers) else None


def left_out_parts(names: Iterable[str], parts: Mapping[str, str], spec: DecoderSpec) -> dict[str, str]:
    """{module that is left out: what it is, and how many of the tensors are in it}."""
    counts = Counter(module for name in names if (module := part_of(name, parts, spec)))
    what = {module: parts.get(module.removeprefix("model.")) for module in counts}
    return {module: left_out(one, counts[module]) if one else drafting(counts[module]) for module, one in what.items()}


def grouped(names: Iterable[str]) -> str:
    """Names for a message on one line, those that differ by numbers as one: `model.layers.*.mlp.x (32)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_NUMBER.sub("*", name), []).append(name)
    found = [f"{one} ({len(alike)})" if alike[1:] else alike[0] for one, alike in groups.items()]
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
