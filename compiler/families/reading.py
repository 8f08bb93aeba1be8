"""Reads a config.json for one family: typed keys with its defaults, and the parts of layers that families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ...runtime.errors import CheckpointError, Unsupported
from ..config.fields import Fields, shown
from ..config.rope import RopeConfig, parse_rope
from .spec import Attention, DecoderSpec, GatedMlp, LayerSpec, Linear, Norm

_ACTIVATIONS = {"silu": "silu", "swish": "silu"}
_MAX_POSITIONS = 2**31 - 1


@dataclass(frozen=True)
class Family:
    """A kind of decoder: the config keys it reads beside the common ones, and its layers."""

    name: str
    """`model_type` in config.json."""
    architecture: str
    """The name in `architectures` of config.json."""
    layer: Callable[[ConfigReader, int], LayerSpec]
    """Returns the record of the layer with the given index."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Its keys and their values when absent (null is a value), as in its config class of transformers 5."""


def _count(key: str, high: int) -> cached_property[int]:
    """A required key: an integer from 1 to `high`."""
    return cached_property(lambda reading: reading.fields.need_integer(key, 1, high))


DECIDED_WITH_OTHERS = ("bos_token_id", "eos_token_id")
"""Keys whose default counts only if no other file names the token: `tokens.resolve` says which is taken."""


class ConfigReader:
    """Typed access to the keys of one config.json, with its family's defaults.

    Every method and property raises CheckpointError or Unsupported, which names the file, the key, the expected and the
    found value.
    """

    def __init__(self, values: Mapping[str, Any], family: Family, what: str) -> None:
        absent = {key: value for key, value in family.defaults.items() if key not in values and value is not None}
        self.fields = Fields({**absent, **values}, what)
        self.ignored: dict[str, str] = {}
        """Rope setting that its type does not use, to the reason."""
        taken = {key: value for key, value in absent.items() if key not in DECIDED_WITH_OTHERS}
        self.notes = [f"{key} = {shown(value)}: the default of the architecture" for key, value in taken.items()]
        """Defaults that were used, and notes on rope."""

    hidden_size = _count("hidden_size", 2**18)
    layers = _count("num_hidden_layers", 2048)
    heads = _count("num_attention_heads", 4096)
    positions = _count("max_position_embeddings", _MAX_POSITIONS)

    @cached_property
    def kv_heads(self) -> int:
        kv_heads = self.fields.integer("num_key_value_heads", 1, 4096, self.heads)
        if self.heads % kv_heads:
            raise self.fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({self.heads})")
        return kv_heads

    @cached_property
    def head_dim(self) -> int:
        fields = self.fields
        if not fields.has("head_dim") and self.hidden_size % self.heads:
            expected = f"a multiple of num_attention_heads ({self.heads}), as there is no head_dim,"
            raise fields.refuse("hidden_size", expected)
        size = fields.integer("head_dim", 1, 4096, self.hidden_size // self.heads)
        if size % 2:
            asked = f'expected "head_dim" as an even number (rotary embedding turns pairs) in {fields.what}'
            raise CheckpointError(asked, found=str(size))
        return size

    @cached_property
    def rope(self) -> RopeConfig:
        values, what = self.fields.values, self.fields.what
        rope, ignored, notes = parse_rope(
            values, head_dim=self.head_dim, max_position_embeddings=self.positions, what=what
        )
        self.ignored |= ignored
        self.notes += notes
        return rope

    def flag(self, key: str) -> bool:
        return self.fields.flag(key, False)

    def integer(self, key: str, low: int) -> int | None:
        """An integer of at least `low`; None if the key is null."""
        return self.fields.integer(key, low, _MAX_POSITIONS)

    def kinds(self) -> list[str] | None:
        """`layer_types`, one per layer; None if the key is absent, null or empty."""
        kinds = self.fields.values.get("layer_types")
        if kinds and (not isinstance(kinds, list) or len(kinds) != self.layers):
            raise self.fields.refuse("layer_types", f"a list of num_hidden_layers ({self.layers}) entries")
        return kinds or None

    def norm(self, module: str, size: int = 0) -> Norm:
        epsilon = self.fields.need_number("rms_norm_eps", 0.0, 1.0, open_low=True)
        return Norm(module, size or self.hidden_size, epsilon)

    def attention(
        self, *, bias: bool = False, output_bias: bool = False, norms: bool = False, window: int | None = None
    ) -> Attention:
        """Attention with the usual module names; `bias` applies to q, k and v, `norms` to each head of q and k."""
        q, kv, hidden = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden_size
        return Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.head_dim**-0.5,
            self.rope,
            q=Linear("self_attn.q_proj", q, hidden, bias),
            k=Linear("self_attn.k_proj", kv, hidden, bias),
            v=Linear("self_attn.v_proj", kv, hidden, bias),
            o=Linear("self_attn.o_proj", hidden, q, output_bias),
            q_norm=self.norm("self_attn.q_norm", self.head_dim) if norms else None,
            k_norm=self.norm("self_attn.k_norm", self.head_dim) if norms else None,
            window=window,
        )

    def mlp(self, *, bias: bool = False) -> GatedMlp:
        name, hidden = self.fields.text("hidden_act", "silu"), self.hidden_size
        if name not in _ACTIVATIONS:
            asked = f'expected "hidden_act" as one of {", ".join(_ACTIVATIONS)} in {self.fields.what}'
            raise Unsupported(asked, found=shown(name))
        width = self.fields.need_integer("intermediate_size", 1, 2**20)
        return GatedMlp(
            _ACTIVATIONS[name],
            gate=Linear("mlp.gate_proj", width, hidden, bias),
            up=Linear("mlp.up_proj", width, hidden, bias),
            down=Linear("mlp.down_proj", hidden, width, bias),
        )

    def layer(self, mixer: Attention, mlp: GatedMlp) -> LayerSpec:
        """A layer with a norm before its mixer and one before its MLP."""
        return LayerSpec(self.norm("input_layernorm"), mixer, self.norm("post_attention_layernorm"), mlp)

    def decoder(self, family: Family) -> DecoderSpec:
        """The whole decoder; refuses `layer_types` that contradict the windows of the layers."""
        layers = tuple(family.layer(self, index) for index in range(self.layers))
        for index, (kind, layer) in enumerate(zip(self.kinds() or (), layers, strict=False)):
            expected = ("full_attention", "attention") if layer.mixer.window is None else ("sliding_attention",)
            if kind not in expected:
                asked = f'expected "layer_types" of {expected[0]} in {self.fields.what}'
                raise Unsupported(asked, found=f"{shown(kind)} in layer {index}")
        return DecoderSpec(
            vocab_size=self.fields.need_integer("vocab_size", 1, 2**24),
            hidden_size=self.hidden_size,
            positions=self.positions,
            layers=layers,
            norm=self.norm("model.norm"),
            tied=self.flag("tie_word_embeddings"),
        )
