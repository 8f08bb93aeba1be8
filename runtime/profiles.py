"""Chooses the profile of an engine that runs on this machine or another; gives the reason why others do not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol

from .chips import SHARED, SM, TARGETS, capability, lacks, runs_on, target_for
from .cuda.names import NATIVE, known_capability
from .engine_file.file import EngineFile
from .engine_file.manifest import Profile
from .engine_file.split import Split, split_name, target_of
from .environment import has_launcher, is_setting
from .errors import EngineError, RecipeError, ResourceError, install_hint

_NO_BINDINGS = f"cuda-bindings is not installed: {install_hint('cuda')}"


class Gpu(Protocol):
    """A GPU: its name, compute capability (90 for 9.0) and bytes of memory."""

    @property
    def name(self) -> str: ...
    @property
    def sm(self) -> int: ...
    @property
    def memory(self) -> int: ...


Gpus = Sequence[Gpu] | None
"""The kinds of GPU of another machine, which has as many as it takes; None stands for this machine."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine that a process may use; empty without a driver."""
    from .cuda.gpus import detect

    return detect().gpus


def has_bindings() -> bool:
    """True if the driver's Python bindings (the extra "cuda") are installed."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # the namespace "cuda" is missing too
        return False


def fits(engine: EngineFile, there: Gpus = None) -> dict[str, str]:
    """Per profile of the engine, the reason why it does not fit the machine (this one by default), or ""."""
    return {name: _unfit(profile, there) for name, profile in engine.manifest.profiles.items()}


def _unfit(profile: Profile, there: Gpus) -> str:
    ranks = _split(profile).ranks
    if ranks > 1 and there is None and not hasattr(os, "memfd_create"):
        return "its ranks need Linux"
    if profile.target == "cpu":
        return ""
    reason = _lacking(profile.target, int(profile.needs.get("shared", 0)), there)
    return reason or ("" if ranks == 1 or there is not None else _alone(profile.target, ranks))


def _alone(target: str, ranks: int) -> str:
    """Why a profile's ranks cannot run on the GPUs here that run its code, or ""; a launcher's may be elsewhere too."""
    able = sum(runs_on(SM[target], gpu.sm) for gpu in gpus())
    if able < ranks and not has_launcher():
        return f"needs {ranks} GPUs, one for each rank, of which this machine has {able}"
    return nccl_problem()


@cache
def nccl_problem() -> str:
    """Why NCCL cannot be loaded here, or ""."""
    from .cuda.exchange.nccl import Nccl

    try:
        Nccl.load()
    except ResourceError as error:
        return f"needs NCCL ({error.found}): {error.fix}"
    return ""


def _split(profile: Profile) -> Split:
    return Split.parse(profile.split or "tp1")


def _lacking(target: str, shared: int, there: Gpus) -> str:
    """Why a target's code, whose blocks take `shared` bytes of shared memory, runs on none of these GPUs, or ""."""
    if target not in SM:
        return f"this llmc does not run target {target!r}"
    present = gpus() if there is None else there
    if not present:
        return "no NVIDIA GPU here" if there is None else "no NVIDIA GPU"
    reasons: dict[str, dict[str, None]] = {}
    for gpu in present:
        reason = lacks(SM[target], shared, gpu.sm)
        name = f"this GPU ({gpu.name})" if there is None else gpu.name
        has = SHARED[gpu.sm] if runs_on(SM[target], gpu.sm) else capability(gpu.sm)
        reasons.setdefault(reason, {})[f"{name} has {has}"] = None
    if "" in reasons:
        return _NO_BINDINGS if there is None and not has_bindings() else ""
    first = max(reasons)  # "needs ... shared memory" sorts last: that GPU has the capability
    return ", ".join([first, *reasons[first]])


def choose(engine: EngineFile, name: str | None = None, *, simulated: bool = False) -> tuple[str, dict[str, str]]:
    """The profile to run, `name` or the best that fits, and the reasons of `fits`.

    With `simulated` it is a profile of a GPU, which need not be present.

    Raises:
        EngineError: the engine has no such profile.
        RecipeError: it shall be simulated, but is not a GPU's.
        ResourceError: it does not fit this machine, or no profile does.
    """
    name = named(engine, name)
    if simulated:
        return choose_gpu_profile(engine, name), {}
    reasons = fits(engine)
    fitting = [one for one, reason in reasons.items() if not reason]
    if name is None and not fitting:
        found = "; ".join(f"{one}: {reason}" for one, reason in reasons.items()) or "no profile at all"
        raise ResourceError(f"cannot run {engine.path} on this machine", found=found, fix="llmc build --target cpu")
    if name is not None and name not in fitting:
        raise ResourceError(
            f"cannot run profile {name!r} of {engine.path} on this machine",
            found=reasons[name],
            fix="another profile or machine",
        )
    return name or best(engine, fitting), reasons


def why(engine: EngineFile, name: str, reasons: Mapping[str, str]) -> str:
    """Which profile was chosen, and of each other one why it does not fit, or that it comes after."""
    after = "fits, but was not chosen" if reasons else "not looked at: a profile is simulated"
    others = [f"  {one}: {reasons.get(one) or after}" for one in engine.manifest.profiles if one != name]
    return "\n".join([f"{engine.path}: profile {name}", *others])


def named(engine: EngineFile, name: str | None) -> str | None:
    """The profile with this name, else the best one for the GPU with this name; None stays None, as does "native".

    Raises:
        EngineError: there is none.
    """
    known = {profile.lower(): profile for profile in engine.manifest.profiles}
    if name is None or name.lower() == NATIVE:
        return None
    if name.lower() in known:
        return known[name.lower()]
    sm = known_capability(name)
    if sm is not None and (able := runnable(engine, (sm,))):
        return best(engine, able)
    raise EngineError(
        f"cannot find profile {name!r} in {engine.path}",
        found=f"profiles {', '.join(known.values())}{'; LLMC_PROFILE is set' if is_setting('profile', name) else ''}",
        fix=_build_with(engine, name.lower() if sm is None else target_for(sm) or ""),
    )


def _build_with(engine: EngineFile, name: str) -> str:
    """The flags that build an engine's profiles and one more; "" if no build makes a profile of that name."""
    try:
        wanted = Split.parse(split_name(name))
    except ValueError:
        return ""
    if target_of(name) not in TARGETS:
        return ""
    profiles = engine.manifest.profiles.values()
    targets = dict.fromkeys([*(one.target for one in profiles), target_of(name)])
    splits = sorted({wanted, *map(_split, profiles)})
    parallel = f" --parallel {','.join(one.name for one in splits)}" if splits[-1].ranks > 1 else ""
    return f"llmc build --target {','.join(targets)}{parallel}"


def best(engine: EngineFile, names: Sequence[str]) -> str:
    """Of `names`, which must not be empty, that of the fewest ranks, then the best target, then the fewest stages."""
    order, profiles = [*SM, "cpu"], engine.manifest.profiles

    def key(name: str) -> tuple[int, int, int]:
        split = _split(profiles[name])
        return split.ranks, order.index(profiles[name].target), split.pp

    return min(names, key=key)


def runnable(engine: EngineFile, chips: Iterable[int]) -> list[str]:
    """The profiles whose code runs on one of these compute capabilities; shared memory is not considered."""
    there = tuple(chips)
    targets = {name: profile.target for name, profile in engine.manifest.profiles.items()}
    return [name for name, target in targets.items() if target in SM and any(runs_on(SM[target], c) for c in there)]


def choose_gpu_profile(engine: EngineFile, name: str | None = None) -> str:
    """A profile with a launch plan: `name`, or the best.

    Raises:
        EngineError: the engine has no such profile.
        RecipeError: it has no launch plan, or no profile has one.
    """
    name = named(engine, name)
    profiles = engine.manifest.profiles
    with_plan = [one for one, profile in profiles.items() if profile.target in SM]
    if name in with_plan:
        return name
    if with_plan and name is None:
        return best(engine, with_plan)
    thing = "a profile of a GPU" if name is None else f"profile {name!r} as one of a GPU"
    found = f"profiles {', '.join(profiles)}" if name is None else f"target {profiles[name].target}"
    fix = f"--profile {best(engine, with_plan)}" if with_plan else "llmc build --target sm_90"
    raise RecipeError(f"expected {thing} in {engine.path}", found=found, fix=fix)
