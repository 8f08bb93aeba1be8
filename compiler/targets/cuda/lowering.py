"""Collects the kernel calls of one program and the tensors they use; the functions of `operators.py` add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ....passes.graph.graph import Graph, attribute, dims, width
from ....quantize.activations import GROUP
from ....runtime.dtypes import DTYPES
from ....runtime.plan.between import ALONE, RankOf
from ....runtime.plan.inputs import INPUTS, ROTARY
from ....runtime.plan.plan import BLOCK_TOKENS, KVCache, Tensor
from .call import CollectiveCall, KernelCall, Operand
from .kernels.linear.choose import SMALL_M
from .kernels.linear.expand_fp8 import expand_fp8
from .kernels.linear.tiles import COUNTERS, Tile
from .kernels.sampling import counts, tile_stats
from .kernels.sampling import sample as sampling
from .kernels.sampling import tokens as token_kernels
from .kernels.sampling.operands import Chosen, SampledRows
from .tuning.tactics import Key

LATENT = "MergedLatentAttention"
CACHED = ("RopeAttention", LATENT)
"""Operators that write to a cache of their own."""
BIASES = 32
"""Biased tokens of a request that the device can add; a request with more is sampled on the host."""


@dataclass(frozen=True)
class StepShape:
    """A kind of step: see `runtime/plan/plan.py`, Program."""

    decode: bool
    tokens: int
    sequences: int
    rows: int

    def limit(self, size: str) -> int:
        return {"tokens": self.tokens, "sequences": self.sequences, "rows": self.rows}[size]


@dataclass(frozen=True)
class CudaProfile:
    """The facts that all programs of a profile share."""

    graph: Graph
    sm: int
    activation: str
    max_context: int
    max_batch: int
    max_prefill: int
    """The most prompt tokens of a step."""
    kv: str
    """The format of the cache."""
    tiles: Mapping[Key, Tile] = field(default_factory=dict)
    """Measured tiles (`tuning/tactics.py`)."""
    rank: RankOf = ALONE

    @property
    def max_blocks(self) -> int:
        return -(-self.max_context // BLOCK_TOKENS)

    def kv_cache(self, node: ir.Node) -> KVCache:
        """The kind of cache of an attention operator, its own or that of the layer it shares it with.

        All tokens of a step are written before attention reads, so a ring must hold them and the window of the first
        of them, which may begin anywhere in a block.
        """
        window = attribute(node, "window")
        if window is None:
            return KVCache(self.max_blocks, rank=self._rank(node))
        return KVCache(min(-(-(window + self.max_prefill) // BLOCK_TOKENS) + 1, self.max_blocks), window)

    @staticmethod
    def _rank(node: ir.Node) -> int | None:
        """The values' numbers of a latent attention's row: as many as its norm has weights."""
        return None if node.op_type != LATENT else width(node.inputs[2])

    @property
    def kv_caches(self) -> tuple[KVCache, ...]:
        """The kinds of cache of all layers; the one without a window comes first."""
        kinds = {self.kv_cache(node) for node in self.graph.nodes if node.op_type in CACHED}
        return tuple(sorted(kinds, key=lambda kind: kind.window or 0))


def fp4_group(value: ir.Value) -> int:
    """The group of a value that `QuantizeActivations` rounds to E2M1; 0 for E4M3."""
    producer = value.producer()
    assert producer is not None
    return GROUP.get(producer.overload, 0)


@dataclass
class Shared:
    """What all programs of a profile use."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    setup: dict[str, tuple[str, KernelCall]] = field(default_factory=dict)
    """Calls that compute state from weights, once, with their labels, by name of the state."""


@dataclass
class Lowering:
    """The calls of one program, in launch order."""

    profile: CudaProfile
    shape: StepShape
    shared: Shared
    calls: list[tuple[str, KernelCall | CollectiveCall]] = field(default_factory=list)
    buffers: dict[str, Operand] = field(default_factory=dict)
    quantized: dict[ir.Value, tuple[Operand, Operand]] = field(default_factory=dict)
    """Activations as E4M3 codes [tokens, K] and scales [tokens], or E2M1 codes [tokens, K / 2] and scales of groups."""
    unfinished: dict[str, tuple[Operand, float]] = field(default_factory=dict)
    """Sums of squares and epsilon of the norms whose division is left to the linears that read them, by buffer."""
    orders: dict[str, int] = field(default_factory=dict)
    """The order in which the columns of a buffer lie, if not as they are; see `kernels/linear/parts/fused.py`."""
    _values: dict[ir.Value, Operand] = field(default_factory=dict)

    def take_tokens(self) -> None:
        """Read the step's token ids; ids that are still only on the device come from the state of their slot."""
        i32 = "i32"
        self._call(
            "take tokens",
            token_kernels.take_tokens(
                self.input("token_ids", i32, "tokens"),
                self.state("last_tokens", i32, "slots"),
                self.buffer("tokens", i32, "tokens"),
                slots=self.profile.max_batch,
            ),
        )

    def operand(self, value: ir.Value | None) -> Operand:
        """The tensor of a value: the result of an earlier launch, a weight, or rotary tables that the host makes."""
        assert value is not None
        if value in self._values:
            return self._values[value]
        expr = self.profile.graph.expr(value)
        if expr is None and value.is_graph_input():
            return self.input(str(value.name), "f32", "tokens", width(value))
        assert expr is not None, f"{value.name} is neither computed nor a weight"
        name = str(value.name)
        return self._share(name, "weight", Operand(name, DTYPES[expr.dtype].kernel, expr.shape))

    def result(self, value: ir.Value, dtype: str | None = None) -> Operand:
        """A new buffer for a value, in `dtype` or by default in the dtype of activations."""
        made = self.buffer(str(value.name), dtype or self.profile.activation, self.rows_of(value), width(value))
        self._values[value] = made
        return made

    def computed(self, value: ir.Value) -> bool:
        """True if an earlier launch already produces this value."""
        return value in self._values

    def rows_of(self, value: ir.Value) -> str:
        """The size that counts a value's rows: "tokens", or "rows" after the selection of rows."""
        return "tokens" if len(dims(value)) == 3 or self.shape.decode else "rows"

    def wants_fp8(self, value: ir.Value) -> bool:
        """True if the step is large enough for FP8 tensor cores, or those of FP4."""
        return self.shape.limit(self.rows_of(value)) > SMALL_M

    def quantized_result(self, value: ir.Value) -> tuple[Operand, Operand]:
        """New buffers for the result of `QuantizeActivations`: E4M3 codes u8 [rows, K] and scales f32 [rows], or by its
        overload E2M1 codes u8 [rows, K / 2] and scales u8 [rows, K / group]."""
        rows, k, group = self.rows_of(value), width(value), fp4_group(value)
        codes = self.buffer(f"{value.name}.codes", "u8", rows, k // 2 if group else k)
        name = f"{value.name}.scales"
        scales = self.buffer(name, "u8", rows, k // group) if group else self.buffer(name, "f32", rows)
        self.quantized[value] = codes, scales
        return codes, scales

    def buffer(self, name: str, dtype: str, *shape: int | str) -> Operand:
        operand = Operand(name, dtype, shape)
        self.buffers[name] = operand
        return operand

    def widened(self, operand: Operand, width: int) -> Operand:
        """The buffer [rows, width] whose first bytes are `operand` [rows, n]: a part with room for the widest one."""
        return self.buffer(operand.name, operand.dtype, operand.shape[0], width)

    def beside(self, y: Operand) -> Callable[..., Operand]:
        """A function that makes buffers whose names begin with y's: for the launches that compute y."""
        return lambda name, dtype, *shape: self.buffer(f"{y.name}.{name}", dtype, *shape)

    def counters(self, count: int = 1) -> Operand:
        """At least `count` integer counters, which are 0 between launches."""
        assert count <= COUNTERS, f"{count} counters"
        return self.state("counters", "i32", COUNTERS)

    def input(self, name: str, dtype: str, *shape: int | str) -> Operand:
        made = INPUTS.get(name.partition(".")[0], ROTARY)
        assert (dtype, shape[0]) == (made.dtype, made.size), f"input {name}: {dtype} {shape}"
        return self._share(name, "input", Operand(name, dtype, shape))

    def state(self, name: str, dtype: str, *shape: int | str) -> Operand:
        return self._share(name, "state", Operand(name, dtype, shape))

    def expanded(
        self, label: str, weights: tuple[Operand, ...], n: int, k: int, *, format: str
    ) -> tuple[Operand, Operand]:
        """A weight [n, k] as E4M3 codes u8 [n, k] and scales f32 [n], which are computed once for all programs."""
        name = f"{weights[0].name}.e4m3"
        codes, scales = self.state(name, "u8", n, k), self.state(f"{name}.scales", "f32", n)
        if name not in self.shared.setup:
            self.shared.setup[name] = label, expand_fp8(weights, codes, scales, format=format)
        return codes, scales

    def cache(self, value: ir.Value | None, kind: KVCache) -> Operand:
        """The paged cache [blocks, K, 64, D] of a past key or value [B, K, C, D]."""
        assert value is not None
        _, heads, _, size = dims(value)
        shape = (kind.size, heads, BLOCK_TOKENS, size)
        name = str(value.name)
        dtype = "u8" if self.profile.kv == "fp8" else self.profile.activation
        return self._share(name, "cache", Operand(name, dtype, shape))

    def add(self, node: ir.Node, call: KernelCall | CollectiveCall) -> None:
        """Add a launch, labelled by the module or operator it computes."""
        self._call(str(node.name), call)

    def alias(self, value: ir.Value, operand: Operand) -> None:
        self._values[value] = operand

    def _call(self, label: str, call: KernelCall | CollectiveCall) -> None:
        self.calls.append((label, call))

    def _share(self, name: str, kind: str, operand: Operand) -> Operand:
        self.shared.tensors[name] = Tensor(kind, operand.dtype, tuple(map(str, operand.shape)))
        return operand

    def _remember_prompts(self, counts_of: Operand) -> None:
        """Mark the prompt tokens of a step's sequences in the counts; decode steps have no prompts."""
        ids, prompt_slots = self.input("token_ids", "i32", "tokens"), self.input("prompt_slots", "i32", "tokens")
        self._call("penalties", counts.forget_counts(self.input("reset_slots", "i32", "sequences"), counts_of))
        self._call("penalties", counts.mark_prompt(ids, prompt_slots, counts_of))

    def sample(self, value: ir.Value) -> None:
        """Sample a token per row of logits; it stays on the device for the next step and is sent to the host."""
        logits = self._values[value]
        vocab = logits.shape[-1]
        assert isinstance(vocab, int)
        counts_of = self.state("token_counts", "i32", "slots", vocab)
        if not self.shape.decode:
            self._remember_prompts(counts_of)
        rows, penalty_slots = SampledRows.of(self.input), tile_stats.Edits.of(self.input, BIASES)
        edited = self.buffer("edited", "f32", "rows", vocab)
        stats, chosen = tile_stats.TileStats.of(self.buffer, vocab), Chosen.of(self.buffer)
        listed = self.buffer("listed", "i32", "rows", tile_stats.listed_of(vocab))
        read = tile_stats.tile_stats(logits, rows.temperature, rows.logprobs, penalty_slots, counts_of, edited, stats)
        self._call("sample", read)
        self._call("sample", sampling.choose(logits, edited, stats, rows, listed, chosen))
        last, slots = self.state("last_tokens", "i32", "slots"), self.input("sample_slots", "i32", "rows")
        kept = token_kernels.keep_tokens(
            chosen.sampled, slots, rows.penalty_slots, last, counts_of, slots=self.profile.max_batch
        )
        self._call("keep tokens", kept)
