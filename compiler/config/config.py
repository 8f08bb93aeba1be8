"""config.json in one spelling: so that Hugging Face's names, defaults and two generations of spelling stop here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import CheckpointError, Unsupported, nearest
from ...runtime.files.strict_json import loads
from .fields import Fields, shown
from .keys import HARMLESS, REMOTE_CODE, USED, judge_keys
from .rope import RopeConfig, parse_rope

# architecture -> model_type, as transformers pairs them
ARCHITECTURES: dict[str, str] = {"LlamaForCausalLM": "llama"}
_ACTIVATIONS = {"silu": "silu", "swish": "silu"}
_DTYPES = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
    "auto": None,
}
# The defaults of transformers' LlamaConfig for keys that its older versions left out.
_DEFAULT_POSITIONS, _DEFAULT_EPS, _DEFAULT_BOS, _DEFAULT_EOS = 2048, 1e-6, 1, 2
_MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True)
class Config:
    """A decoder's shape and constants; sizes in elements, ids in the vocabulary.

    `dtype` is what the config declares (the tensors decide), None if it does not. `quantization` is the method of a
    load-time quantization that may be a leftover; the tensors decide that too. `eos_given` is false if `eos_ids` is the
    architecture's default. `ignored` maps each key not used to the
    reason, `accepted` are unknown keys the user vouched for, `notes` tell what was resolved or filled in.
    """

    architecture: str
    raw: Mapping[str, Any]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    initializer_range: float
    dtype: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    eos_given: bool
    pad_id: int | None
    rope: RopeConfig
    quantization: str
    ignored: Mapping[str, str]
    accepted: tuple[str, ...]
    notes: tuple[str, ...]


def parse_config(data: bytes | str, *, accept: Collection[str] = (), what: str = "config.json") -> Config:
    """Read config.json; `accept` names unknown keys that the user knows to be harmless.

    Raises CheckpointError (damaged, contradictory, out of range, unknown keys), Unsupported (known, but llmc does not
    compute it), RecipeError (an accepted key that is not there).
    """
    raw = loads(data, what=what, error=CheckpointError)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{what}: a JSON object", found=shown(raw))
    values, notes = _lift_text_config(raw, what)
    fields = Fields(values, what)
    architecture = _architecture(fields)
    ignored, accepted = judge_keys(values, accept, what)
    notes += [f"{key}: {HARMLESS[key]}" for key in values if key in REMOTE_CODE and values[key]]
    sizes = _sizes(fields, notes)
    _check_layer_types(fields, sizes["num_hidden_layers"])
    quantization = _quantization(fields)
    rope, rope_ignored, rope_notes = parse_rope(
        values,
        head_dim=sizes["head_dim"],
        max_position_embeddings=sizes["max_position_embeddings"],
        what=what,
    )
    notes += rope_notes
    if not fields.has("rms_norm_eps"):
        notes.append(f"rms_norm_eps = {_DEFAULT_EPS:g}: the default of the architecture")
    bos_id, eos_ids, pad_id = _token_ids(fields, sizes["vocab_size"], notes)
    return Config(
        architecture=architecture,
        raw=raw,
        **sizes,
        rms_norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, _DEFAULT_EPS, open_low=True),
        hidden_act=_activation(fields),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        initializer_range=fields.number("initializer_range", 0.0, 1.0, 0.02),
        dtype=_dtype(fields, notes),
        bos_id=bos_id,
        eos_ids=eos_ids,
        eos_given="eos_token_id" in values,
        pad_id=pad_id,
        rope=rope,
        quantization=quantization,
        ignored=ignored | rope_ignored,
        accepted=accepted,
        notes=tuple(notes),
    )


def _lift_text_config(raw: Mapping[str, Any], what: str) -> tuple[dict[str, Any], list[str]]:
    """The keys of a nested text_config beside those of the top; what both say must agree."""
    inner = Fields(raw, what).table("text_config") or {}
    values = {key: value for key, value in raw.items() if key != "text_config"}
    notes = []
    for key, value in inner.items():
        outer = values.get(key)
        if outer is None:
            values[key] = value
            if value is not None:
                notes.append(f"{key} = {shown(value)}: found in text_config only")
        elif outer != value and value is not None and key in USED and key not in ("architectures", "model_type"):
            raise CheckpointError(
                f'{what}: one value of "{key}"',
                found=f"{shown(outer)} at the top, {shown(value)} in text_config",
                fix="remove the one that is wrong",
            )
    return values, notes


def _architecture(fields: Fields) -> str:
    """The supported architecture that `architectures` names or, if it is absent, `model_type` implies."""
    named, model_type = fields.values.get("architectures"), fields.text("model_type", "")
    supported = ", ".join(ARCHITECTURES)
    if not named:
        implied = [name for name, kind in ARCHITECTURES.items() if kind == model_type]
        if not implied:
            found = f'no architectures, model_type "{model_type}"'
            raise Unsupported(f"{fields.what}: an architecture of {supported}", found=found)
        return implied[0]
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise fields.refuse("architectures", "a list of one name")
    name = named[0]
    if name not in ARCHITECTURES:
        raise Unsupported(
            f"{fields.what}: an architecture of {supported}", found=f"{name}{nearest(name, ARCHITECTURES)}"
        )
    if model_type not in ("", ARCHITECTURES[name]):
        raise fields.refuse("model_type", f'"{ARCHITECTURES[name]}", the type of {name}')
    return name


def _sizes(fields: Fields, notes: list[str]) -> dict[str, int]:
    hidden = fields.need_integer("hidden_size", 1, 2**18)
    heads = fields.need_integer("num_attention_heads", 1, 4096)
    kv_heads = fields.integer("num_key_value_heads", 1, 4096, heads)
    if heads % kv_heads:
        raise fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    if not fields.has("head_dim") and hidden % heads:
        raise fields.refuse("hidden_size", f"a multiple of num_attention_heads, {heads} (or head_dim given beside it)")
    head_dim = fields.integer("head_dim", 1, 4096, hidden // heads)
    if head_dim % 2:
        raise CheckpointError(
            f'{fields.what}: "head_dim" as an even number: rotary embedding turns pairs', found=str(head_dim)
        )
    if not fields.has("max_position_embeddings"):
        notes.append(f"max_position_embeddings = {_DEFAULT_POSITIONS}: the default of the architecture")
    return {
        "hidden_size": hidden,
        "intermediate_size": fields.need_integer("intermediate_size", 1, 2**20),
        "num_hidden_layers": fields.need_integer("num_hidden_layers", 1, 2048),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": fields.need_integer("vocab_size", 1, 2**24),
        "max_position_embeddings": fields.integer("max_position_embeddings", 1, _MAX_POSITIONS, _DEFAULT_POSITIONS),
    }


def _check_layer_types(fields: Fields, layers: int) -> None:
    kinds = fields.values.get("layer_types")
    if not kinds:
        return
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise fields.refuse("layer_types", f"a list of num_hidden_layers entries, {layers}")
    for index, kind in enumerate(kinds):
        if kind not in ("full_attention", "attention"):
            raise Unsupported(
                f'{fields.what}: "layer_types" of full_attention', found=f"{shown(kind)} in layer {index}"
            )


def _activation(fields: Fields) -> str:
    name = fields.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise Unsupported(f'{fields.what}: "hidden_act" of {", ".join(_ACTIVATIONS)}', found=shown(name))
    return _ACTIVATIONS[name]


def _dtype(fields: Fields, notes: list[str]) -> str | None:
    new, old = (fields.text(key, "auto").removeprefix("torch.") for key in ("dtype", "torch_dtype"))
    name = old if new == "auto" else new
    if name not in _DTYPES:
        raise Unsupported(f'{fields.what}: "dtype" of {", ".join(_DTYPES)}', found=shown(name))
    if "auto" not in (new, old) and new != old:
        notes.append(f"dtype = {new}: torch_dtype says {old}")
    return _DTYPES[name]


def _quantization(fields: Fields) -> str:
    """ "" or "bitsandbytes", which quantizes while loading, so that its settings stay behind in merged models."""
    for key in ("quantization_config", "compression_config"):
        settings = fields.table(key)
        if settings is None:
            continue
        loading = any(name in settings for name in ("load_in_4bit", "load_in_8bit"))
        method = Fields(settings, f'{fields.what}: "{key}"').text(
            "quant_method", "bitsandbytes" if loading else "unnamed"
        )
        if method != "bitsandbytes":
            raise Unsupported(
                f'{fields.what}: a checkpoint that is not quantized yet ("{key}" absent or null)',
                found=f'quant_method "{method}"',
                fix="start from the original bf16, fp16 or fp32 checkpoint and quantize with --quantize",
            )
        return method
    return ""


def _token_ids(fields: Fields, vocab_size: int, notes: list[str]) -> tuple[int | None, tuple[int, ...], int | None]:
    """BOS, EOS and padding ids. An absent key means the architecture's default, null means none."""
    bos, eos = fields.ids("bos_token_id", vocab_size), fields.ids("eos_token_id", vocab_size)
    if "bos_token_id" not in fields.values and vocab_size > _DEFAULT_BOS:
        bos = (_DEFAULT_BOS,)
        notes.append(f"bos_token_id = {_DEFAULT_BOS}: the default of the architecture")
    if "eos_token_id" not in fields.values and vocab_size > _DEFAULT_EOS:
        eos = (_DEFAULT_EOS,)
        notes.append(f"eos_token_id = {_DEFAULT_EOS}: the default of the architecture")
    if len(bos) > 1:
        raise fields.refuse("bos_token_id", "at most one token id")
    # Padding is never computed with; many fine-tunes name an id one past the vocabulary.
    pad = fields.values.get("pad_token_id")
    usable = isinstance(pad, int) and not isinstance(pad, bool) and 0 <= pad < vocab_size
    if pad is not None and not usable:
        notes.append(f"pad_token_id = {shown(pad)}: not in the vocabulary of {vocab_size}; padding is not used")
    return (bos[0] if bos else None), eos, (pad if usable else None)
