"""Lowers a skeleton to the launch plans of its ranks, and sorts launches, weights and caches by block of the graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...passes import profile_passes, run_phase
from ...passes.graph.graph import BLOCK, Graph
from ...passes.partition import partition
from ...passes.placement import Span
from ...recipes.recipe import Recipe
from ...runtime.chips import SM
from ...runtime.dtypes import KERNEL_DTYPES
from ...runtime.engine_file.split import Split
from ...runtime.plan.between import Collective, RankOf
from ...runtime.plan.budget import Budget, aligned, without_cache
from ...runtime.plan.copies import copies_of, in_steps
from ...runtime.plan.plan import KVCache, Launch, Plan, Tensor
from ...runtime.plan.price import position_bytes, position_operations
from ..families.spec import DecoderSpec
from ..targets import Precision, ProfileConfig, target_named
from ..targets.cuda.emit import draft, step_shapes
from ..targets.cuda.kernels.linear.tiles import COUNTERS
from ..targets.cuda.lowering import StepShape
from .skeleton import Skeleton

SMALL, LARGE, MIXED = 0, 1, 2
"""The programs of a priced plan: decode steps of few sequences (up to SMALL_M) and of many, and steps with prompts."""

_COUNTERS = Tensor("state", "i32", (str(COUNTERS),))
"""Of parts of K, which some of the programs that are not priced may have: 64 KiB, counted in any case."""


@dataclass(frozen=True)
class Cached:
    """What a part of a model keeps of each position in one kind of cache."""

    position: int = 0
    """Bytes."""
    operations: int = 0
    """Of one new token with one position."""
    block: int = 0
    """Bytes of BLOCK_TOKENS positions."""

    def plus(self, other: Cached, count: int) -> Cached:
        """With `count` times the other."""
        mine, others = vars(self), vars(other)
        return Cached(**{key: mine[key] + count * others[key] for key in mine})


@dataclass(frozen=True)
class Work:
    """What a launch or a collective costs, as formulas over a step's sizes."""

    kernel: str
    """Or the name of the collective."""
    bytes: str
    operations: str
    exchanged: str | None = None
    """Bytes of the whole value, of all shards together, that a collective moves; None of a launch."""


@dataclass
class Block:
    """What one block of the graph costs the first shard of its stage."""

    launches: tuple[list[Launch | Collective], ...] = field(default_factory=lambda: ([], [], []))
    """By program."""
    work: tuple[Counter[Work], ...] = field(default_factory=lambda: (Counter(), Counter(), Counter()))
    """What they cost, by program."""
    weights: dict[str, int] = field(default_factory=dict)
    """Bytes by name, of copies that the setup makes too."""
    caches: dict[KVCache, Cached] = field(default_factory=dict)


@dataclass(frozen=True)
class Pieces:
    """The blocks of a skeleton for one number of shards."""

    skeleton: Skeleton
    tp: int
    ep: int
    blocks: Mapping[str, Block]
    plans: tuple[Plan, ...]
    """Of the first shard of each stage of the skeleton; modules of launches in `blocks` are those of `merged`."""
    _named: tuple[Mapping[str, str], ...] = field(compare=False, repr=False)
    """Of each plan, the block of a launch by its label."""
    _caches: dict[Span, Mapping[KVCache, Cached]] = field(default_factory=dict, compare=False, repr=False)
    """Those asked for."""
    _fixed: dict[tuple[frozenset[str], int], Budget] = field(default_factory=dict, compare=False, repr=False)
    """Those asked for, by blocks and slots: how often a stage has a block does not change its buffers."""

    @cached_property
    def in_steps(self) -> Pieces:
        """The pieces of plans without copies of weights (`runtime/plan/copies.py`)."""
        return _sorted(self.skeleton, self.tp, self.ep, tuple(map(in_steps, self.plans)), self._named)

    @property
    def shards(self) -> int:
        return self.tp * self.ep

    def split(self, pp: int) -> Split:
        """Of the whole model, with so many stages."""
        return Split(self.tp, pp, self.ep)

    @property
    def copies(self) -> bool:
        """True if the plans make copies of weights."""
        return any(plan.setup is not None for plan in self.plans)

    @property
    def prefill(self) -> int:
        """Most prompt tokens of a step."""
        mixed = self.plans[0].programs[MIXED]
        return mixed.tokens - mixed.sequences

    @cached_property
    def shared(self) -> frozenset[str]:
        """Weights that several blocks read: a rank has them once."""
        readers = Counter(name for block in self.blocks.values() for name in block.weights)
        return frozenset(name for name, count in readers.items() if count > 1)

    @cached_property
    def merged(self) -> Plan:
        """One plan with the tensors and modules of all plans."""
        tensors = {name: tensor for plan in self.plans for name, tensor in plan.tensors.items()}
        return replace(self.plans[0], tensors=tensors, modules=sum((plan.modules for plan in self.plans), ()))

    def weights(self, stage: Span) -> int:
        """Bytes of the weights of a stage of the model, on its first shard."""
        once: dict[str, int] = {}
        total = 0
        for name, count in self.skeleton.blocks(stage).items():
            for weight, nbytes in self.blocks[name].weights.items():
                if weight in self.shared:
                    once[weight] = nbytes
                else:
                    total += count * nbytes
        return total + sum(once.values())

    def caches(self, stage: Span) -> Mapping[KVCache, Cached]:
        """What a stage of the model keeps of each position, by kind of cache."""
        if stage not in self._caches:
            self._caches[stage] = self._caches_of(stage)
        return self._caches[stage]

    def _caches_of(self, stage: Span) -> Mapping[KVCache, Cached]:
        found: dict[KVCache, Cached] = {}
        for name, count in self.skeleton.blocks(stage).items():
            for kind, one in self.blocks[name].caches.items():
                found[kind] = found.get(kind, Cached()).plus(one, count)
        return {kind: one for kind, one in found.items() if one.block}

    def parts(self, stage: Span, slots: int) -> Budget:
        """What the runtime's budget (`runtime/plan/budget.py`) says of a stage, for at most `slots` sequences."""
        key = frozenset(self.skeleton.blocks(stage)), slots
        if key not in self._fixed:
            most = self.plans[0].programs[LARGE].sequences
            self._fixed[key] = without_cache(self._stage_plan(stage), 0, slots, most)
        block = {kind.size: one.block for kind, one in self.caches(stage).items()}
        return replace(self._fixed[key], weights=self.weights(stage), block=block)

    def _stage_plan(self, stage: Span) -> Plan:
        """A plan with the launches of a stage, each once: its buffers and inputs do not depend on its depth."""
        names = self.skeleton.blocks(stage)
        alike = [0, -1] if stage[0] == 0 and "head" in names else [-1] if "head" in names else [0]
        programs = []
        for number, program in enumerate(self.plans[0].programs):
            launches = tuple(launch for name in names for launch in self.blocks[name].launches[number])
            arena = max(self.plans[place].programs[number].arena for place in alike)
            programs.append(replace(program, launches=launches, arena=arena))
        read = {name for program in programs for launch in program.launches for name in launch.tensors}
        read -= {name for plan in self.plans for name in copies_of(plan)}  # they count as weights
        tensors = {name: tensor for name, tensor in self.merged.tensors.items() if name in read}
        tensors["counters"] = _COUNTERS
        return replace(self.merged, tensors=tensors, programs=tuple(programs), caches=tuple(self.caches(stage)))


def legal_graphs(logical: Graph, skeleton: Skeleton, recipe: Recipe, tp: int, ep: int = 1) -> tuple[Graph, ...]:
    """The legal graph of the first shard of each stage; `logical` is the skeleton's graph after the model passes.

    Raises:
        Unsupported: this model and its formats cannot be split like this, or the target lacks a precision.
    """
    target, placement = target_named(recipe.targets[0]), skeleton.placement(tp, ep)
    split = placement.split
    graphs = tuple(partition(logical, placement, [split.rank(stage, 0) for stage in range(split.pp)]))
    for graph in graphs:
        run_phase(profile_passes(merge_gated=target.merge_gated), graph)
        run_phase(target.legalize(Precision(recipe.activations, recipe.kv)), graph)
    return graphs


def pieces_of(
    graphs: Sequence[Graph], skeleton: Skeleton, recipe: Recipe, context: int, tp: int, dtype: str, ep: int = 1
) -> Pieces:
    """The pieces of legal graphs, for the recipe's first target."""
    sm, split = SM[recipe.targets[0]], Split(tp, len(graphs), ep)
    plans: list[Plan] = []
    for stage, graph in enumerate(graphs):
        rank = RankOf(split.rank(stage, 0), split.shards, split.pp)
        config = ProfileConfig(context, recipe.max_batch, dtype, recipe.kv, rank=rank)
        plans.append(draft(graph, config, sm, shapes=priced_shapes(recipe.max_batch, context))[0])
    named = tuple({str(node.name): node.metadata_props[BLOCK] for node in graph.nodes} for graph in graphs)
    return _sorted(skeleton, tp, ep, tuple(plans), named)


def _sorted(
    skeleton: Skeleton, tp: int, ep: int, plans: tuple[Plan, ...], named: tuple[Mapping[str, str], ...]
) -> Pieces:
    """The pieces of the plans of a skeleton's stages; `named` has the blocks of launches by label."""
    blocks: dict[str, Block] = defaultdict(Block)
    modules = 0
    for plan, of in zip(plans, named, strict=True):
        _sort(plan, of, blocks, skeleton.short, tp * ep, modules)
        modules += len(plan.modules)
    return Pieces(skeleton, tp, ep, dict(blocks), plans, named)


def priced_shapes(max_batch: int, context: int) -> tuple[StepShape, ...]:
    """SMALL, LARGE and MIXED: the smallest and the largest decode step of an engine, and its largest step with prompts.

    What launches read and compute is the same in all steps of up to SMALL_M sequences.
    """
    shapes = step_shapes(max_batch, context)
    decode = [shape for shape in shapes if shape.decode]
    return decode[0], decode[-1], shapes[-1]


def _sort(
    plan: Plan, of: Mapping[str, str], blocks: dict[str, Block], spec: DecoderSpec, shards: int, modules: int
) -> None:
    """Add a plan's launches, weights and caches to the blocks of its graph; `modules` plans before it have."""
    made = copies_of(plan)
    weights = {
        name: aligned(one.bytes({})) for name, one in plan.tensors.items() if one.kind == "weight" or name in made
    }
    layers = {spec.layer.format(index): f"layer.{index}" for index in range(len(spec.layers))}
    for number, program in enumerate(plan.programs):
        for launch in program.launches:
            name = of.get(launch.label, "embed" if launch.label == "take tokens" else "head")
            block = blocks[name]
            block.work[number][work_of(launch, plan, number)] += 1
            if modules and not isinstance(launch, Collective):
                launch = replace(launch, module=launch.module + modules)
            block.launches[number].append(launch)
            for weight in launch.tensors:
                if weight in weights:  # a norm may be computed by the linear before it, in another block
                    owner = next((own for prefix, own in layers.items() if weight.startswith(prefix)), name)
                    blocks[owner].weights[weight] = weights[weight]
    for cache in plan.caches:
        for name, tensor in plan.tensors.items():
            if tensor.kind == "cache" and tensor.shape[0] == cache.size:
                layer = int(name.split(".")[1])
                heads = spec.layers[layer].mixer.heads // shards
                one = Cached(
                    position_bytes(plan, cache, [tensor]),
                    position_operations([tensor], heads, cache.rank),
                    tensor.bytes({cache.size: 1}),
                )
                caches = blocks[f"layer.{layer}"].caches
                caches[cache] = caches.get(cache, Cached()).plus(one, 1)


def work_of(launch: Launch | Collective, plan: Plan, program: int) -> Work:
    """What a launch of a program of a plan costs."""
    if not isinstance(launch, Collective):
        return Work(plan.modules[launch.module].kernel, launch.bytes, launch.operations)
    item = KERNEL_DTYPES[plan.programs[program].buffers[launch.tensors[0]].dtype].bytes
    parts = plan.rank.tp if launch.collective in ("all_gather", "reduce_scatter") else 1
    return Work(launch.collective, launch.bytes, launch.operations, f"({launch.count}) * {item * parts}")
