"""Decides from layer records what each rank of a split has: heads, rows and columns of linears, layers of stages.

A degree that would cut a head, a block of a weight format or a layer is refused with the nearest degrees that work.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from ...passes.placement import COLUMNS, ROWS, Cut, ExpertsCut, Placement, Span, spans
from ...quantize import FORMATS
from ...runtime.engine_file.manifest import LayerCache
from ...runtime.engine_file.split import MAX_DEGREE, Split
from ...runtime.errors import Unsupported
from ..families.spec import Attention, DecoderSpec, Experts, Latent, LayerSpec, Linear, Mixer, PlainMlp, cache_of

FormatOf = Callable[[str], str]
"""The weight format of a module, or "none"."""


def place(spec: DecoderSpec, split: Split, format_of: FormatOf) -> Placement:
    """The parts of each rank.

    Raises:
        Unsupported: this model and its formats cannot be split like this; names the nearest degrees that work.
    """
    if reason := _wrong(spec, split.tp, split.ep, format_of):
        pp = min(split.pp, len(units(spec)))
        fixes = [Split(tp, pp, ep) for tp, ep in _nearest(spec, split, format_of)]
        raise _refused(split, f"{Split(split.tp, ep=split.ep).name} for {reason}", fixes)
    parts = units(spec)
    if split.pp > len(parts):
        shared = ", those that share a cache as one" if len(parts) < len(spec.layers) else ""
        reason = f"pp{split.pp}, more than the model's layers ({len(parts)}{shared})"
        raise _refused(split, reason, [replace(split, pp=len(parts))])
    cuts, mixtures = {}, {}
    for index, layer in enumerate(spec.layers):
        prefix = spec.layer.format(index)
        cuts |= {f"{prefix}{linear.module}": cut for linear, cut in _cuts(layer, split.shards)}
        if isinstance(layer.mlp, Experts):
            mixtures[f"{prefix}{layer.mlp.module}"] = _of_experts(layer.mlp, split)
    bits = weight_bits(spec, format_of)
    stages = tuple(
        (parts[start][0], parts[stop - 1][1])
        for start, stop in balanced([sum(bits[slice(*part)]) for part in parts], split.pp)
    )
    return Placement(split, stages, cuts, spans(spec.vocab_size, split.shards), mixtures)


def units(spec: DecoderSpec) -> list[Span]:
    """Runs of layers that no stage may part: a layer attends to the cache of an earlier one in its own stage only."""
    starts = [
        index
        for index in range(len(spec.layers))
        if all(index <= source for layer in spec.layers[index:] if (source := layer.mixer.source) is not None)
    ]
    return list(pairwise([*starts, len(spec.layers)]))


def caches_of(spec: DecoderSpec, placement: Placement, rank: int) -> dict[int, LayerCache]:
    """The caches of a rank, by layer."""
    split = placement.split
    return {
        index: cache_of(mixer, stop - start)
        for index in range(*placement.stages[split.stage(rank)])
        for mixer in (spec.layers[index].mixer,)
        if mixer.source is None
        for start, stop in (kv_heads(mixer, split.shards)[split.shard(rank)],)
    }


def _nearest(spec: DecoderSpec, asked: Split, format_of: FormatOf) -> list[tuple[int, int]]:
    """Degrees of tensor and expert parallelism that work: those of the most shards up to the number asked for, and of
    the fewest above it; among equals those with the nearest groups of experts."""
    most = max((layer.mlp.gate_up.experts for layer in spec.layers if isinstance(layer.mlp, Experts)), default=1)
    whole = [shards for shards in range(1, MAX_DEGREE + 1) if not _wrong_shards(spec, shards, format_of)]
    works = [
        (shards, -abs(shards // tp - asked.ep), tp)
        for shards in whole
        for tp in range(1, shards + 1)
        if shards % tp == 0 and shards // tp <= most and not _wrong_experts(spec, tp, shards // tp, format_of)
    ]
    below, above = (
        max((one for one in works if one[0] <= asked.shards), default=None),
        min((one for one in works if one[0] > asked.shards), key=lambda one: (one[0], -one[1]), default=None),
    )
    return [(one[2], one[0] // one[2]) for one in (below, above) if one is not None]


def _refused(split: Split, reason: str, works: Sequence[Split]) -> Unsupported:
    fix = " or ".join(one.name for one in works)
    return Unsupported(f"cannot split this model as {split.name}", found=reason, fix=fix)


def kv_heads(mixer: Mixer, tp: int) -> tuple[Span, ...]:
    """The key and value heads of each shard; more shards than heads have the same ones."""
    if tp <= mixer.kv_heads:
        return spans(mixer.kv_heads, tp)
    return tuple((at, at + 1) for at in (shard * mixer.kv_heads // tp for shard in range(tp)))


def _cuts(layer: LayerSpec, tp: int) -> Iterator[tuple[Linear, Cut]]:
    mlp = layer.mlp.shared if isinstance(layer.mlp, Experts) else layer.mlp
    yield from _of_latent(layer.mixer, tp) if isinstance(layer.mixer, Latent) else _of_attention(layer.mixer, tp)
    if mlp is not None:
        inner = spans(mlp.down.columns, tp)
        first = (mlp.up,) if isinstance(mlp, PlainMlp) else (mlp.gate, mlp.up)
        yield from ((one, Cut(ROWS, inner)) for one in first)
        yield mlp.down, Cut(COLUMNS, inner)


def _of_attention(mixer: Attention, tp: int) -> Iterator[tuple[Linear, Cut]]:
    own = _times(spans(mixer.heads, tp), mixer.head_dim)
    shared = _times(kv_heads(mixer, tp), mixer.head_dim)
    yield mixer.q, Cut(ROWS, own)
    yield from ((one, Cut(ROWS, shared)) for one in (mixer.k, mixer.v) if one is not None)
    yield mixer.o, Cut(COLUMNS, own)


def _of_latent(mixer: Latent, tp: int) -> Iterator[tuple[Linear, Cut]]:
    """Each shard has whole heads; what makes the rows of the cache, and the ranks of queries, it has whole."""
    heads = spans(mixer.heads, tp)
    yield mixer.q, Cut(ROWS, _times(heads, mixer.nope_dim + mixer.rope_dim))
    yield mixer.kv_up, Cut(ROWS, _times(heads, mixer.nope_dim + mixer.value_dim))
    yield mixer.o, Cut(COLUMNS, _times(heads, mixer.value_dim))


def _of_experts(experts: Experts, split: Split) -> ExpertsCut:
    """Each group has whole experts, as equally many as can be, and each of its shards a part of every one."""
    places = [split.group(shard) for shard in range(split.shards)]
    groups = spans(experts.gate_up.experts, split.ep)
    inner = spans(experts.down.columns, split.tp)
    return ExpertsCut(tuple(groups[group] for group, _ in places), tuple(inner[place] for _, place in places))


def _times(parts: Sequence[Span], size: int) -> tuple[Span, ...]:
    return tuple((start * size, stop * size) for start, stop in parts)


def _wrong(spec: DecoderSpec, tp: int, ep: int, format_of: FormatOf) -> str:
    """What the degrees cannot divide, or ""."""
    return _wrong_experts(spec, tp, ep, format_of) or _wrong_shards(spec, tp * ep, format_of)


def _wrong_experts(spec: DecoderSpec, tp: int, ep: int, format_of: FormatOf) -> str:
    """What of the experts the degrees cannot divide, or ""."""
    if ep > 1 and not spec.stacks():
        return "a model without experts"
    for index, layer in enumerate(spec.layers):
        if not isinstance(layer.mlp, Experts):
            continue
        down, prefix = layer.mlp.down, spec.layer.format(index)
        if ep > down.experts:
            return f"{down.experts} experts in {prefix.rstrip('.')}"
        if down.columns % tp:
            return f"experts with an intermediate size of {down.columns} in {prefix.rstrip('.')}"
        if reason := _wrong_blocks(f"{prefix}{down.module}", down.columns, spans(down.columns, tp), format_of):
            return reason
    return ""


def _wrong_shards(spec: DecoderSpec, tp: int, format_of: FormatOf) -> str:
    """What so many shards cannot divide of all that is no expert, or ""."""
    if tp > min(spec.vocab_size, spec.hidden_size):
        return f"a vocabulary of {spec.vocab_size} and a hidden size of {spec.hidden_size}"
    for index, layer in enumerate(spec.layers):
        mixer, prefix = layer.mixer, spec.layer.format(index)
        if mixer.heads % tp or max(mixer.kv_heads, tp) % min(mixer.kv_heads, tp):
            others = "" if isinstance(mixer, Latent) else f" and {mixer.kv_heads} key and value heads"
            return f"{mixer.heads} heads{others} in {prefix.rstrip('.')}"
        norm = mixer.k_norm if isinstance(mixer, Attention) else None
        if tp > mixer.kv_heads and norm is not None and norm.size != mixer.head_dim:
            return f"a norm of all {mixer.kv_heads} key heads together in {prefix.rstrip('.')}"
        mlp = layer.mlp.shared if isinstance(layer.mlp, Experts) else layer.mlp
        if mlp is not None and mlp.down.columns % tp:
            which = " of the shared expert" if isinstance(layer.mlp, Experts) else ""
            return f"an intermediate size of {mlp.down.columns}{which} in {prefix.rstrip('.')}"
        for linear, cut in _cuts(layer, tp):
            module = f"{prefix}{linear.module}"
            if cut.axis == COLUMNS and (reason := _wrong_blocks(module, linear.columns, cut.spans, format_of)):
                return reason
    return ""


def _wrong_blocks(module: str, columns: int, parts: Sequence[Span], format_of: FormatOf) -> str:
    """Which blocks of a weight's columns such parts would cut, or ""."""
    name = format_of(module)
    block = FORMATS[name].block if name != "none" else None
    if block and any(stop % block for _, stop in parts):
        return f"{columns} columns in blocks of {block} ({name}) in {module}"
    return ""


def weight_bits(spec: DecoderSpec, format_of: FormatOf) -> list[float]:
    """Bits of the weights of each layer; the first has the embedding's too, the last the head's. "none" counts as 16.

    A decode step reads all weights once, and each stage holds its own: so stages of equal bits take equal time and
    equal memory. The embedding counts for the memory.
    """

    known: dict[tuple[str, int, int], float] = {}

    def bits(module: str, rows: int, columns: int) -> float:
        key = format_of(module), rows, columns
        if key not in known:
            each = 16.0 if key[0] == "none" else FORMATS[key[0]].bits_per_weight(rows, columns)
            known[key] = each * rows * columns
        return known[key]

    costs = []
    for index, layer in enumerate(spec.layers):
        prefix = spec.layer.format(index)
        linears = sum(bits(f"{prefix}{one.module}", one.rows, one.columns) for one in layer.linears() if not one.kept)
        kept = sum(16.0 * one.rows * one.columns for one in layer.linears() if one.kept)
        stacks = sum(one.experts * bits(f"{prefix}{one.module}", one.rows, one.columns) for one in layer.stacks())
        costs.append(linears + kept + stacks)
    head = bits(spec.head, spec.vocab_size, spec.hidden_size)
    costs[0] += head if spec.tied else 16.0 * spec.vocab_size * spec.hidden_size
    costs[-1] += head
    return costs


def balanced(costs: Sequence[float], count: int) -> tuple[Span, ...]:
    """Cuts a row of costs into `count` parts, none empty, so that the largest sum is least, then the sum of squares."""
    ends = [0.0, *accumulate(costs)]
    # The largest part is at least the mean, and less than the mean and the largest cost: more would be moved on.
    mean, most = ends[-1] / count, max(costs)
    spans_of = (
        (bisect_left(ends, one + 0.999 * mean), bisect_right(ends, one + 1.001 * (mean + most))) for one in ends
    )
    sums = sorted(
        {ends[stop] - start for start, span in zip(ends[:-1], spans_of, strict=False) for stop in range(*span)}
    )
    largest = sums[bisect_left(sums, True, key=lambda limit: _parts(ends, limit) <= count)]
    best = {0: (0.0, (0,))}
    for part in range(1, count + 1):
        found: dict[int, tuple[float, tuple[int, ...]]] = {}
        for start, (score, stops) in best.items():
            for stop in range(start + 1, len(costs) - (count - part) + 1):
                size = ends[stop] - ends[start]
                if size > largest:
                    break
                if ends[-1] - ends[stop] <= largest * (count - part) * 1.001:  # the rest fits into the other parts
                    option = score + size * size, (*stops, stop)
                    found[stop] = min(found.get(stop, option), option)
        best = found
    return tuple(pairwise(best[len(costs)][1]))


def _parts(ends: Sequence[float], most: float) -> int:
    """The fewest parts of at most this sum, taken from the first on; more than there can be if one cost is larger."""
    parts, start = 1, 0.0
    for before, end in pairwise(ends):
        if end - before > most:
            return len(ends)
        if end - start > most:
            parts, start = parts + 1, before
    return parts
