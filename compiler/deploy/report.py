"""A plan as records: `llmc.plan` returns them, and `llmc plan --json` prints them under the names of their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that `llmc.PlanReport` imports nothing heavy
    from ..planner.all_formats import Refused
    from ..planner.choose import Choice
    from .frontier import Place


@dataclass(frozen=True)
class GpuMemory:
    """Memory of the GPU that is fullest, in bytes."""

    usable_bytes: int
    """What a plan may use of it."""
    weights_bytes: int
    cache_bytes_per_request: int
    """Of one request at its full length."""
    workspace_bytes: int
    """Activations, inputs, scratch."""


@dataclass(frozen=True)
class BuildFigures:
    """What the build of a candidate takes on this machine; None: not known before `llmc doctor --measure`."""

    seconds: float | None
    """With weights on the disk, and no kernel in the cache."""
    peak_bytes: int | None
    """Largest memory of the process."""
    disk_bytes: int
    """Of the engine's header and weights: exactly for one rank, up to 2 KB less for each rank of a split. The sections,
    a few MB, come on top."""


@dataclass(frozen=True)
class CandidateReport:
    """One way to run a model on a machine, at the number of requests that suits the goal best; None: not known, or it
    does not fit."""

    machine: str
    gpus: int
    hosts: int
    dollars_per_hour: float | None
    profile: str
    parallel: str
    """As `llmc build --parallel` takes it."""
    tp: int
    pp: int
    ep: int
    copies: int
    """Of the model, on the machine."""
    quantize: str
    activations: str
    kv: str
    bits_per_weight: float
    """Stored, scales included."""
    memory: GpuMemory
    fits: bool
    """Whether a copy has memory for its part of the requests that were asked for, or for one."""
    max_requests: int
    """Requests at once of the machine, of full length, for which it has memory."""
    requests: int | None
    """Requests at once of the machine, for which the figures below hold."""
    requests_per_copy: int | None
    tpot_s: float | None
    """Seconds per generated token of one request, after its first."""
    ttft_s: float | None
    """Seconds from the first step of a prompt to its first token."""
    decode_tokens_per_s: float | None
    """Generated, of the whole machine."""
    prefill_tokens_per_s: float | None
    """Of prompts, of the whole machine."""
    bound: str | None
    """What most of the time is bound by."""
    shares: Mapping[str, float] | None
    """The share of the time by what bounds it."""
    build: BuildFigures
    lost: str
    """Why it is not the best; "" of the best."""


@dataclass(frozen=True)
class FrontierPoint:
    """A deployment of which no other gives both a request and the machine more tokens/s."""

    machine: str
    profile: str
    quantize: str
    activations: str
    requests: int
    tokens_per_s_of_request: float
    """1 / tpot_s."""
    decode_tokens_per_s: float
    tpot_s: float
    ttft_s: float


@dataclass(frozen=True)
class RefusedReport:
    """A format, or a degree of tensor parallelism of it, that this model cannot have."""

    quantize: str
    activations: str
    kv: str
    target: str
    tp: int | None
    reason: str


@dataclass(frozen=True)
class ModelReport:
    """The model that was planned."""

    path: str
    architecture: str
    parameters: int
    layers: int
    dtype: str
    """Of the stored tensors."""
    has_weights: bool
    """False if only a config.json was read."""


@dataclass(frozen=True)
class LoadReport:
    """The requests that were planned for."""

    input_tokens: int
    output_tokens: int
    context: int
    batch: int | None
    """Requests at once of the machine; None: any number that fits."""


@dataclass(frozen=True)
class WouldFit:
    """What the model would fit in, where nothing that was asked for does."""

    machine: str
    profile: str
    quantize: str


@dataclass(frozen=True)
class PlanReport:
    """What `llmc plan` has found."""

    model: ModelReport
    goal: str
    load: LoadReport
    best: CandidateReport | None
    """None if no candidate reaches the goal."""
    nearest: CandidateReport | None
    """The candidate that misses the goal by least; None if one reaches it, or none fits."""
    would_fit: tuple[WouldFit, ...]
    """If none has memory for one request."""
    candidates: tuple[CandidateReport, ...]
    """All, the best first; then the others that reach the goal, then those that do not."""
    refused: tuple[RefusedReport, ...]
    frontier: tuple[FrontierPoint, ...]
    """Of the machine of the best or nearest candidate, the fastest request first."""
    not_priced: tuple[str, ...]
    """Machines of the table that were left out, as they are dearer than the best or have no price."""
    notes: tuple[str, ...]
    """On the model."""


def candidate_report(choice: Choice, build: BuildFigures) -> CandidateReport:
    """A choice of the planner as a record."""
    one, point = choice.candidate, choice.point
    figures = None if point is None else one.figures(point)
    return CandidateReport(
        machine=one.machine.name,
        gpus=one.machine.gpus,
        hosts=one.machine.hosts,
        dollars_per_hour=one.machine.dollars,
        profile=one.profile,
        parallel=one.split.name,
        tp=one.split.tp,
        pp=one.split.pp,
        ep=one.split.ep,
        copies=one.copies,
        quantize=one.recipe.default_format,
        activations=one.recipe.activations,
        kv=one.recipe.kv,
        bits_per_weight=one.bits,
        memory=GpuMemory(one.usable, one.needs.weights, one.needs.cache, one.needs.workspace),
        fits=point is not None,
        max_requests=one.most * one.copies,
        requests=None if point is None else one.requests(point),
        requests_per_copy=None if point is None else point.sequences,
        tpot_s=None if point is None else point.tpot,
        ttft_s=None if point is None else point.ttft,
        decode_tokens_per_s=None if figures is None else figures["decode"],
        prefill_tokens_per_s=None if figures is None else figures["prefill"],
        bound=None if point is None else point.bound,
        shares=None if point is None else dict(point.shares),
        build=build,
        lost=choice.lost,
    )


def refused_report(one: Refused) -> RefusedReport:
    """A refusal of the planner as a record."""
    recipe = one.recipe
    return RefusedReport(recipe.default_format, recipe.activations, recipe.kv, recipe.targets[0], one.tp, one.reason)


def frontier_report(places: Sequence[Place]) -> tuple[FrontierPoint, ...]:
    """A frontier as records."""
    return tuple(
        FrontierPoint(
            machine=one.candidate.machine.name,
            profile=one.candidate.profile,
            quantize=one.candidate.recipe.default_format,
            activations=one.candidate.recipe.activations,
            requests=one.requests,
            tokens_per_s_of_request=one.user,
            decode_tokens_per_s=one.machine,
            tpot_s=one.point.tpot,
            ttft_s=one.point.ttft,
        )
        for one in places
    )
