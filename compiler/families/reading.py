"""Reads a config.json for one family: typed keys with its defaults, and the parts of layers that families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...runtime.errors import CheckpointError, Unsupported
from ..config.fields import Fields, shown
from ..config.rope import RopeConfig, RopeDefaults, parse_rope
from .spec import RMS, Attention, DecoderSpec, GatedMlp, LayerSpec, Linear, Mixer, Mlp, Norm, Parameter, PlainMlp

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "xielu": "xielu",
}
"""Names in config.json, to those of `passes/graph/pointwise.py`; three of them are one formula."""
GATED = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
"""Activations that a gate may have."""
_KINDS: Mapping[tuple[bool, bool], tuple[str, ...]] = {
    (False, False): ("full_attention", "attention"),
    (True, False): ("sliding_attention",),
    (False, True): ("chunked_attention",),
}
"""What `layer_types` may say of a layer with or without a window, with or without chunks."""
_MAX_POSITIONS = 2**31 - 1
LOGITS = "logits of transformers"
"""Of `Family.verified`: tests/e2e/numbers/families compares both."""


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
    decoder: Callable[[ConfigReader, DecoderSpec], DecoderSpec] = lambda config, spec: spec
    """Completes the decoder: what is not Llama's outside the layers."""
    rope: RopeDefaults = field(default_factory=RopeDefaults)
    norm: str = "model.norm"
    """The module of the last norm."""
    epsilon: str = "rms_norm_eps"
    """The key of what all norms add to the variance."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a small config.json, beside its sizes, that turn on what an absent key leaves off."""
    verified: str = LOGITS
    """What its numbers were compared with."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keys of published files that have one value in all of them, which is what llmc computes."""
    spelled: Mapping[str, str] = field(default_factory=dict)
    """Second names of keys, which published files have beside the first, with the same value."""
    mapped: Mapping[str, str] = field(default_factory=dict)
    """The same of keys that count also where the first is absent: `attribute_map` of its config class."""
    also: tuple[str, ...] = ()
    """Other names of the architecture in published files."""
    kinds: tuple[str, ...] = ()
    """What `layer_types` calls its layers, if it has names of its own for them."""
    stored: tuple[str, ...] = ()
    """Weight formats that published files have experts in: the `quant_method`, and `Spelling.format` of stacks."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of tensors' names, each with the part that other files have in its place."""

    @property
    def keys(self) -> frozenset[str]:
        """All keys that it reads beside the common ones."""
        return frozenset((*self.defaults, *self.fixed, *self.spelled, *self.mapped))


def _count(key: str, high: int) -> cached_property[int]:
    """A required key: an integer from 1 to `high`."""
    return cached_property(lambda reading: reading.fields.need_integer(key, 1, high))


DRAFTS = ("num_nextn_predict_layers", "num_mtp_layers")
"""Names of the number of layers that draft tokens: published ones, and that of transformers 5."""
DECIDED_WITH_OTHERS = ("bos_token_id", "eos_token_id")
"""Keys whose default counts only if no other file names the token: `tokens.resolve` says which is taken."""


class ConfigReader:
    """Typed access to the keys of one config.json, with its family's defaults.

    Every method and property raises CheckpointError or Unsupported, which names the file, the key, the expected and the
    found value.
    """

    def __init__(self, values: Mapping[str, Any], family: Family, what: str) -> None:
        second = {key: values[name] for name, key in family.mapped.items() if name in values and key not in values}
        values = {**values, **second}
        absent = {key: value for key, value in family.defaults.items() if key not in values and value is not None}
        self.fields = Fields({**absent, **values}, what)
        self.family = family
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

    def rope(self, defaults: RopeDefaults | None = None, head_dim: int = 0) -> RopeConfig:
        """The rope of layers with these defaults, by default the family's, and with heads of this size."""
        defaults, size = defaults or self.family.rope, head_dim or self.head_dim
        values, what = self.fields.values, self.fields.what
        rope, ignored, notes = parse_rope(
            values, head_dim=size, max_position_embeddings=self.positions, what=what, defaults=defaults
        )
        self.ignored |= ignored
        self.notes += [note for note in notes if note not in self.notes]
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

    def kind(self, index: int, every: int) -> str:
        """`layer_types` of a layer; if absent, one of `every` so many layers sees all, and the others have a window."""
        kinds = self.kinds()
        return kinds[index] if kinds else "sliding_attention" if (index + 1) % every else "full_attention"

    def only(self, expected: Mapping[str, Any]) -> None:
        """Refuse keys of the family that have another value than the one that it computes; absent ones have that."""
        for key, value in expected.items():
            if self.fields.has(key) and self.fields.values[key] != value:
                found = shown(self.fields.values[key])
                raise Unsupported(f'expected "{key}" as {shown(value)} in {self.fields.what}', found=found)

    def cap(self, key: str) -> float | None:
        """A bound of logits or scores; None if the key is null."""
        return self.fields.number(key, 0.0, 1e6, None, open_low=True)

    def norm(
        self, module: str, size: int = 0, *, kind: str = RMS, plus_one: bool = False, bias: bool = False, each: int = 0
    ) -> Norm:
        """A norm over `size` elements, by default the hidden size."""
        epsilon = self.fields.need_number(self.family.epsilon, 0.0, 1.0, open_low=True)
        return Norm(module, size or self.hidden_size, epsilon, kind, plus_one, bias, each)

    def attention(
        self,
        *,
        bias: bool = False,
        output_bias: bool = False,
        norms: bool = False,
        window: int | None = None,
        rope: RopeConfig | None = None,
        head_dim: int = 0,
        kv_heads: int = 0,
        output: str = "self_attn.o_proj",
        fused: str = "",
    ) -> Attention:
        """Attention with the usual module names; `bias` applies to q, k and v, `norms` to each head of q and k.

        `rope` and sizes are by default those of all layers. `fused` is the module that holds q, k, v, if any.
        """
        size, kv_heads, hidden = head_dim or self.head_dim, kv_heads or self.kv_heads, self.hidden_size
        q, kv = self.heads * size, kv_heads * size
        first, total = {"q": 0, "k": q, "v": q + kv}, q + 2 * kv

        def linear(name: str, rows: int) -> Linear:
            part = (fused, first[name], total) if fused else None
            return Linear(f"self_attn.{name}_proj", rows, hidden, bias, part)

        return Attention(
            self.heads,
            kv_heads,
            size,
            size**-0.5,
            rope or self.rope(head_dim=size),
            q=linear("q", q),
            k=linear("k", kv),
            v=linear("v", kv),
            o=Linear(output, hidden, q, output_bias),
            q_norm=self.norm("self_attn.q_norm", size) if norms else None,
            k_norm=self.norm("self_attn.k_norm", size) if norms else None,
            window=window,
        )

    def activation(self, key: str = "hidden_act", default: str = "silu") -> str:
        name = self.fields.text(key, default)
        if name not in _ACTIVATIONS:
            asked = f'expected "{key}" as one of {", ".join(_ACTIVATIONS)} in {self.fields.what}'
            raise Unsupported(asked, found=shown(name))
        return _ACTIVATIONS[name]

    @property
    def width(self) -> int:
        """The inner size of an MLP."""
        return self.fields.need_integer("intermediate_size", 1, 2**20)

    def mlp(self, *, bias: bool = False, activation: str = "", fused: str = "", width: int = 0) -> GatedMlp:
        """A gated MLP; `fused` is the module that holds gate and up side by side, if one does."""
        width, hidden, activation = width or self.width, self.hidden_size, activation or self.activation()
        if activation not in GATED:
            asked = f'expected "hidden_act" that an MLP with a gate has ({", ".join(GATED)}) in {self.fields.what}'
            raise Unsupported(asked, found=activation)
        parts = [(fused, first, 2 * width) if fused else None for first in (0, width)]
        return GatedMlp(
            activation,
            gate=Linear("mlp.gate_proj", width, hidden, bias, parts[0]),
            up=Linear("mlp.up_proj", width, hidden, bias, parts[1]),
            down=Linear("mlp.down_proj", hidden, width, bias),
        )

    def plain_mlp(self, up: str, down: str, *, bias: bool, activation: str = "") -> PlainMlp:
        """An MLP without a gate, of the modules `up` and `down`."""
        width, hidden, activation = self.width, self.hidden_size, activation or self.activation()
        scalars = (("alpha_p", (1,)), ("alpha_n", (1,)), ("beta", ()), ("eps", ())) if activation == "xielu" else ()
        parameters = tuple(Parameter(f"mlp.act_fn.{name}", shape) for name, shape in scalars)
        return PlainMlp(
            activation, Linear(up, width, hidden, bias), Linear(down, hidden, width, bias), parameters=parameters
        )

    def layer(self, mixer: Mixer, mlp: Mlp) -> LayerSpec:
        """A layer with a norm before its mixer and one before its MLP."""
        return LayerSpec(self.norm("input_layernorm"), mixer, self.norm("post_attention_layernorm"), mlp)

    def drafts(self) -> int:
        """Layers of the files after the last one, which draft tokens; the key has two names."""
        counts = {key: self.fields.integer(key, 0, 64, 0) for key in DRAFTS}
        return max(counts.values())

    def last_norm(self, layers: Sequence[LayerSpec]) -> Norm:
        """The norm before the head, which is of the kind that the layers have."""
        known = [norm for one in layers[:1] for norm in (one.mixer_norm, one.mixer_post) if norm is not None]
        return replace(known[0], module=self.family.norm)

    def decoder(self, family: Family) -> DecoderSpec:
        """The whole decoder; refuses `layer_types` that contradict the windows of the layers."""
        self.only(family.fixed)
        self.only({name: self.fields.values.get(key) for name, key in {**family.spelled, **family.mapped}.items()})
        layers = tuple(family.layer(self, index) for index in range(self.layers))
        for index, (kind, layer) in enumerate(zip(self.kinds() or (), layers, strict=False)):
            expected = family.kinds or _KINDS[layer.mixer.window is not None, layer.mixer.chunk is not None]
            if kind not in expected:
                asked = f'expected "layer_types" of {expected[0]} in {self.fields.what}'
                raise Unsupported(asked, found=f"{shown(kind)} in layer {index}")
        spec = DecoderSpec(
            vocab_size=self.fields.need_integer("vocab_size", 1, 2**24),
            hidden_size=self.hidden_size,
            positions=self.positions,
            layers=layers,
            norm=self.last_norm(layers),
            tied=self.flag("tie_word_embeddings"),
            renamed=family.renamed,
            drafts=self.drafts(),
        )
        return family.decoder(self, spec)
