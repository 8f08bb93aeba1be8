"""config.json as one family reads it: its keys, its defaults, and the parts of layers that families share."""

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
    """A kind of decoder: what it reads of a config beyond what all read, and what a layer is.

    defaults: its keys with the value of one that is absent (null is a value), as its config class in transformers 5
    has them. layer: the record of the layer of an index.
    """

    name: str
    architecture: str
    layer: Callable[[Reading, int], LayerSpec]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def _count(key: str, high: int) -> cached_property[int]:
    """A key that must be there: an integer from 1 to `high`."""
    return cached_property(lambda reading: reading.fields.need_integer(key, 1, high))


class Reading:
    """Typed access to the keys of one config.json, with its family's defaults; notes say where these were used.

    Every method raises CheckpointError or Unsupported that names the file, the key, what was expected and found.
    """

    def __init__(self, values: Mapping[str, Any], family: Family, what: str) -> None:
        absent = {key: value for key, value in family.defaults.items() if key not in values and value is not None}
        self.fields = Fields({**absent, **values}, what)
        self.ignored: dict[str, str] = {}
        """Rope settings that their type has no use for, with the reason."""
        self.notes = [f"{key} = {shown(value)}: the default of the architecture" for key, value in absent.items()]

    hidden_size = _count("hidden_size", 2**18)
    layers = _count("num_hidden_layers", 2048)
    heads = _count("num_attention_heads", 4096)
    positions = _count("max_position_embeddings", _MAX_POSITIONS)

    @cached_property
    def kv_heads(self) -> int:
        kv_heads = self.fields.integer("num_key_value_heads", 1, 4096, self.heads)
        if self.heads % kv_heads:
            raise self.fields.refuse("num_key_value_heads", f"a divisor of num_attention_heads, {self.heads}")
        return kv_heads

    @cached_property
    def head_dim(self) -> int:
        fields, given = self.fields, "(or head_dim given beside it)"
        if not fields.has("head_dim") and self.hidden_size % self.heads:
            raise fields.refuse("hidden_size", f"a multiple of num_attention_heads, {self.heads} {given}")
        size = fields.integer("head_dim", 1, 4096, self.hidden_size // self.heads)
        if size % 2:
            expected = f'{fields.what}: "head_dim" as an even number: rotary embedding turns pairs'
            raise CheckpointError(expected, found=str(size))
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
        """An integer of at least `low`; None if null."""
        return self.fields.integer(key, low, _MAX_POSITIONS)

    def kinds(self) -> list[str] | None:
        """`layer_types`, one per layer; None if absent, null or empty."""
        kinds = self.fields.values.get("layer_types")
        if kinds and (not isinstance(kinds, list) or len(kinds) != self.layers):
            raise self.fields.refuse("layer_types", f"a list of num_hidden_layers entries, {self.layers}")
        return kinds or None

    def norm(self, module: str, size: int = 0) -> Norm:
        epsilon = self.fields.need_number("rms_norm_eps", 0.0, 1.0, open_low=True)
        return Norm(module, size or self.hidden_size, epsilon)

    def attention(
        self, *, bias: bool = False, output_bias: bool = False, norms: bool = False, window: int | None = None
    ) -> Attention:
        """Attention as most checkpoints name it; bias: of q, k and v; norms: of each head of q and k."""
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
            raise Unsupported(f'{self.fields.what}: "hidden_act" of {", ".join(_ACTIVATIONS)}', found=shown(name))
        width = self.fields.need_integer("intermediate_size", 1, 2**20)
        return GatedMlp(
            _ACTIVATIONS[name],
            gate=Linear("mlp.gate_proj", width, hidden, bias),
            up=Linear("mlp.up_proj", width, hidden, bias),
            down=Linear("mlp.down_proj", hidden, width, bias),
        )

    def layer(self, mixer: Attention, mlp: GatedMlp) -> LayerSpec:
        """A layer that norms what its mixer and its MLP read."""
        return LayerSpec(self.norm("input_layernorm"), mixer, self.norm("post_attention_layernorm"), mlp)

    def decoder(self, family: Family) -> DecoderSpec:
        """All of it; `layer_types`, where a config gives them, say the same as the layers."""
        layers = tuple(family.layer(self, index) for index in range(self.layers))
        for index, (kind, layer) in enumerate(zip(self.kinds() or (), layers, strict=False)):
            expected = ("full_attention", "attention") if layer.mixer.window is None else ("sliding_attention",)
            if kind not in expected:
                asked = f'{self.fields.what}: "layer_types" of {expected[0]}'
                raise Unsupported(asked, found=f"{shown(kind)} in layer {index}")
        return DecoderSpec(
            vocab_size=self.fields.need_integer("vocab_size", 1, 2**24),
            hidden_size=self.hidden_size,
            positions=self.positions,
            layers=layers,
            norm=self.norm("model.norm"),
            tied=self.flag("tie_word_embeddings"),
        )
