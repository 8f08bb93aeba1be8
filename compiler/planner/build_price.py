"""The price of a build before it begins: bytes from shapes and formats, seconds and memory from this machine's facts.

Imports torch inside functions only: a planner prices builds from a configuration alone.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from ...recipes.recipe import Recipe
from ...runtime.costs.facts import BuildFacts
from ...runtime.engine_file.bind import Stored
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.weights.stacks import stored_formats
from ..config.rope import RopeConfig
from ..decoder.rope import length_rope
from ..engine.layout import default_reserve, whole_end
from ..families.spec import DecoderSpec, Experts, Latent, LayerSpec, Linear, Mixer, Norm, PlainMlp, Temperature

KERNEL_S = 1.4
"""Seconds to compile a kernel of a GPU's profile on one core, an assumption: the 28 kernels of README's sm_90 profile
took 19.9 s on two. Cached kernels take none."""
KERNELS = 42
"""Of a GPU's profile, about: for sm_90, examples/configs/llama-3.1-405b.json has 32 to 50, by format, batch (8 to 1024)
and split (1 and 8 shards, 1 and 2 stages)."""
GPU_BYTES = 90 << 20
"""Memory of this process for the profile of a GPU beside that of a CPU (README: 418.53 and 332.29 MiB)."""
_GRAPH_BYTES = (8 << 10, 4 << 10)
"""Of a cpu profile's section: of the graph, and of each layer. Measured: 34 KiB for 8 layers, 67 KiB for 16."""
_PLAN_BYTES = (1 << 20, 30 << 10)
"""Of a GPU profile's sections: of kernels, and of each layer's launches (README's two.llmc)."""
_PROBE_BYTES = 3 << 10
_SAMPLES, _PAGE = 64, 4096
_COMPILE = "compile profiles"


@dataclass(frozen=True)
class BuildPrice:
    """What a build takes."""

    seconds: float
    """As the build counts them: from the first stage to the last, without the start of the process."""
    peak_bytes: int
    """Peak memory of the process."""
    bytes: int
    """Of the engine."""
    weight_bytes: int
    """Of its header and weights, exactly, if it is one file; sections follow."""
    stages: Mapping[str, float]
    """Seconds by the names of the build's own stages."""
    kernel_s: float
    """For each kernel that has to be compiled, which only a lowered graph knows: beside `seconds`."""

    def with_kernels(self, count: int) -> BuildPrice:
        """With so many kernels of GPU profiles that no cache holds."""
        compiling = self.kernel_s * count
        stages = {**self.stages, _COMPILE: self.stages[_COMPILE] + compiling}
        return replace(self, seconds=self.seconds + compiling, stages=stages)


@dataclass(frozen=True)
class BuildSizes:
    """What a build reads and writes."""

    bytes: int
    """Header and weights of the engine, exactly, if it is one file; sections follow."""
    source_bytes: Mapping[str, int]
    """Bytes of the checkpoint's tensors by the weight format that they get, "none" for those that are copied."""
    weights: Mapping[str, int]
    """Numbers in them."""


def predict_build(
    checkpoint: Checkpoint,
    recipe: Recipe,
    facts: BuildFacts,
    *,
    context: int,
    threads: int,
    section_bytes: int | None = None,
    memory_limit: int | None = None,
    cold: bool = False,
) -> BuildPrice:
    """The price of building an open checkpoint, whose weights may be random numbers.

    `context` is the engine's number of positions (`pipeline.context_of`), `threads` those of the facts. No kernel
    is compiled in it. `section_bytes` are all sections, which are estimated otherwise.
    `cold`: the weights come from the disk, also those that are in the page cache or not here yet.

    Raises:
        KeyError: a weight format was not measured.
    """
    spec = checkpoint.config.decoder
    sections = _section_bytes(checkpoint, recipe) if section_bytes is None else section_bytes
    sizes = build_sizes(checkpoint, recipe, context, sections=section_count(checkpoint, recipe))
    stages = {
        "graph and passes": facts.graph_s + facts.layer_s * len(spec.layers) * len(recipe.profiles),
        _COMPILE: 0.0,
        "weights": _weights_seconds(checkpoint, sizes, facts, threads, cold=cold),
        "golden probe": facts.probe_s
        + sum(count * facts.named(name).probe_weight_s for name, count in sizes.weights.items()),
        "finish file": facts.finish_s + (sizes.bytes + sections) * facts.disk_write_byte_s,
    }
    peak = facts.peak_bytes + (GPU_BYTES if any(target != "cpu" for target in recipe.targets) else 0)
    return BuildPrice(
        seconds=sum(stages.values()),
        peak_bytes=peak if memory_limit is None else min(peak, memory_limit),
        bytes=sizes.bytes + sections,
        weight_bytes=sizes.bytes,
        stages=stages,
        kernel_s=KERNEL_S / threads,
    )


def section_count(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """The sections of an engine whose profiles have one rank each: of a GPU the plan, its machine code and its PTX."""
    each = [1 if target == "cpu" else 3 for target in recipe.targets for _ in recipe.splits]
    return len(checkpoint.tokenizer) + sum(each)


def build_sizes(checkpoint: Checkpoint, recipe: Recipe, context: int, *, sections: int) -> BuildSizes:
    """Header and weights of the engine, and what is read for them; `sections` is the number of sections."""
    source: defaultdict[str, int] = defaultdict(int)
    numbers: defaultdict[str, int] = defaultdict(int)
    copied, quantized = [*_tables(checkpoint.config.decoder, context), *_ones(checkpoint.config.decoder)], []
    made: dict[Hashable, _Group] = {}  # of one layer and of all like it: their tensors' names do not matter here
    stored = stored_formats(checkpoint.config.decoder.stacks(), checkpoint.source.names)
    for tensors, fmt in _grouped(checkpoint.config.decoder, recipe, stored):
        key = fmt, tuple((checkpoint.source.info(name).dtype, shape) for name, shape in tensors)
        group = made[key] = made.get(key) or _group(checkpoint, tensors, fmt)
        source[fmt] += group.source_bytes
        numbers[fmt] += group.weights
        (copied if fmt == "none" else quantized).extend(group.stored)
    groups = [*copied, *quantized]  # in the order in which passes make them
    return BuildSizes(whole_end(groups, default_reserve(groups, sections)), dict(source), dict(numbers))


@dataclass(frozen=True)
class _Group:
    """Tensors of the checkpoint that lie next to each other."""

    source_bytes: int
    weights: int
    stored: list[list[Stored]]
    """What the engine stores for them."""


def _group(checkpoint: Checkpoint, tensors: list[tuple[str, tuple[int, ...]]], fmt: str) -> _Group:
    infos = [Stored(name, checkpoint.source.info(name).dtype, shape) for name, shape in tensors]
    return _Group(sum(one.nbytes for one in infos), sum(prod(one.shape) for one in infos), _stored(infos, fmt))


def _grouped(
    spec: DecoderSpec, recipe: Recipe, stored: Mapping[str, str]
) -> Iterator[tuple[list[tuple[str, tuple[int, ...]]], str]]:
    """Tensors that lie next to each other, and their weight format: what `passes/quantize_weights.py` decides.

    Modules that files have `stored` in a format already are copied.
    """
    table = (f"{spec.embedding}.weight", (spec.vocab_size, spec.hidden_size))
    head = recipe.format_of(spec.head)
    if not spec.tied or head == "none":
        yield [table], "none"
    if spec.per_layer is not None:
        projection = f"{spec.per_layer.projection.module}.weight"
        for name, shape in spec.per_layer.tensors(""):
            module = name.removesuffix(".weight")
            yield [(name, shape)], recipe.format_of(module) if name == projection else "none"
    for index, layer in enumerate(spec.layers):
        prefix = spec.layer.format(index)
        shared = dict(_shared(layer))
        for name, shape in layer.tensors(prefix):
            module = name.removesuffix(".weight").removeprefix(prefix)
            if (module not in shared or len(shape) != 2) and len(shape) != 3:
                yield [(name, shape)], "none"
        yield from (one for one in _stacks(layer, prefix, recipe, stored) if one[1] == "none")
        for linears in dict.fromkeys(shared.values()):
            by_format: defaultdict[str, list[Linear]] = defaultdict(list)
            for linear in linears:
                by_format[recipe.format_of(f"{prefix}{linear.module}")].append(linear)
            for fmt, some in by_format.items():
                tensors = [(f"{prefix}{one.module}.weight", (one.rows, one.columns)) for one in some]
                yield from ([([one], fmt) for one in tensors] if fmt == "none" else [(tensors, fmt)])
    for name, shape in spec.norm.tensors(""):
        yield [(name, shape)], "none"
    if spec.head_bias:
        yield [(f"{spec.head}.bias", (spec.vocab_size,))], "none"
    if not spec.tied:
        yield [(f"{spec.head}.weight", (spec.vocab_size, spec.hidden_size))], head
    elif head != "none":  # the table shares the head's codes
        yield [table], head
    for index, layer in enumerate(spec.layers):  # experts are quantized after all linears
        yield from (one for one in _stacks(layer, spec.layer.format(index), recipe, stored) if one[1] != "none")


def _stacks(
    layer: LayerSpec, prefix: str, recipe: Recipe, stored: Mapping[str, str]
) -> Iterator[tuple[list[tuple[str, tuple[int, ...]]], str]]:
    """The weights of experts, each of which lies alone, and their formats; each component of a stored one."""
    for one in layer.stacks():
        module = f"{prefix}{one.module}"
        if module in stored:
            from ...quantize import FORMATS

            for part in FORMATS[stored[module]].components(one.rows, one.columns):
                yield [(f"{module}.{part.name}", (one.experts, *part.shape))], "none"
        else:
            yield [(f"{module}.weight", (one.experts, one.rows, one.columns))], recipe.format_of(module)


def _shared(layer: LayerSpec) -> Iterator[tuple[str, tuple[Linear, ...]]]:
    """The linears of a layer by module, each with those of its input and parent module; experts are not among them."""
    mixer, extra = layer.mixer, layer.extra
    mlp = layer.mlp.shared if isinstance(layer.mlp, Experts) else layer.mlp
    first = () if mlp is None else (mlp.up,) if isinstance(mlp, PlainMlp) else (mlp.gate, mlp.up)
    last = () if mlp is None else (mlp.down,)
    alone = (mixer.o, *last, *(() if extra is None else (extra.gate, extra.projection)))
    for linears in (*_of_mixer(mixer), first, *((one,) for one in alone)):
        for linear in linears:
            yield linear.module, linears


def _of_mixer(mixer: Mixer) -> Iterator[tuple[Linear, ...]]:
    """The linears before attention, those of one input together."""
    if isinstance(mixer, Latent):
        yield mixer.q_down or mixer.q, mixer.kv_down
        yield (mixer.q,) if mixer.q_down else ()
    else:
        yield tuple(filter(None, (mixer.q, mixer.k, mixer.v)))


def _stored(infos: list[Stored], fmt: str) -> list[list[Stored]]:
    """The groups of the tensors that an engine stores for these of the checkpoint."""
    if fmt == "none":
        return [infos]
    from ...quantize import FORMATS

    parts = [FORMATS[fmt].components(*one.shape[-2:]) for one in infos]
    stems = [(one.name.removesuffix("weight"), one.shape[:-2]) for one in infos]
    return [
        [
            Stored(f"{stem}{part.name}", part.dtype, (*experts, *part.shape))
            for (stem, experts), part in zip(stems, column, strict=True)
        ]
        for column in zip(*parts, strict=True)
    ]


def _tables(spec: DecoderSpec, context: int) -> list[list[Stored]]:
    """The rotary tables that an engine stores: those that do not depend on a sequence's length."""
    kinds: list[tuple[RopeConfig | None, int, Temperature | None]] = []
    factors: set[Temperature] = set()
    for mixer in (layer.mixer for layer in spec.layers):
        latent = isinstance(mixer, Latent)
        if latent and mixer.temperature is not None:
            factors.add(mixer.temperature)
        for scaled in dict.fromkeys((None,) if latent else (mixer.temperature, None)):
            settings = mixer.rope, mixer.rope_dim if latent else mixer.head_dim, scaled
            if (mixer.rope or mixer.temperature) and settings not in kinds:
                kinds.append(settings)
    turned = [(rope, rope.rotated(size) if rope else size) for rope, size, _ in kinds]
    fixed = [size for rope, size in turned if not rope or length_rope(rope, size, spec.positions, context) is None]
    tables = [[Stored(f"temperature.{at}", "F32", (context, 1))] for at in range(len(factors))]
    return tables + [
        [Stored(f"rope.{at}.{part}", "F32", (context, size // 2))] for at, size in enumerate(fixed) for part in "cs"
    ]


def _ones(spec: DecoderSpec) -> list[list[Stored]]:
    """The factors that an engine stores for norms without a weight: one for each size."""
    norms = (part for layer in spec.layers for part in layer.parts() if isinstance(part, Norm))
    return [[Stored(f"ones.{size}", "F32", (size,))] for size in {norm.size for norm in norms if not norm.module}]


def _section_bytes(checkpoint: Checkpoint, recipe: Recipe) -> int:
    """An estimate: tokenizer files are known, graphs and plans are not made yet."""
    layers = len(checkpoint.config.decoder.layers)
    kinds = [_GRAPH_BYTES if target == "cpu" else _PLAN_BYTES for target in recipe.targets for _ in recipe.splits]
    return sum(map(len, checkpoint.tokenizer.values())) + sum(a + b * layers for a, b in kinds) + _PROBE_BYTES


def _weights_seconds(
    checkpoint: Checkpoint, sizes: BuildSizes, facts: BuildFacts, threads: int, *, cold: bool
) -> float:
    """Reading, quantizing, writing and hashing overlap, and so does the checkpoint's own digest, which begins earlier:
    what of it remains takes its share of the cores. A disk that is slower than all of them sets the time."""
    busy = sum(size * facts.named(name).source_byte_s for name, size in sizes.source_bytes.items())
    whole = sum(sizes.source_bytes.values())
    files = [shard.facts.bytes for shard in checkpoint.files.shards] or [whole if cold else 0]
    digest = max(0.0, sum(files) * facts.hash_byte_s - facts.start_s * min(threads, len(files))) / threads
    read = whole if cold else _uncached_bytes(checkpoint)
    return max(busy + digest, read * facts.disk_read_byte_s)


def _uncached_bytes(checkpoint: Checkpoint) -> float:
    """Bytes of the weight files that are not in the page cache, from samples; 0 where the system does not tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return 0.0
    total = 0.0
    for shard in checkpoint.files.shards:
        size = shard.facts.bytes
        offsets = [size * at // _SAMPLES // _PAGE * _PAGE for at in range(_SAMPLES)]
        total += size * sum(not _is_cached(shard.fd, offset) for offset in offsets) / _SAMPLES
    return total


def _is_cached(fd: int, offset: int) -> bool:
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:  # a file system without this call
        return True
