"""Which profile of an engine runs on this machine or on another, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from .chips import SHARED, SM, capability, lacks, runs_on
from .engine_file.file import EngineFile
from .errors import EngineError, RecipeError, ResourceError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable


_NO_BINDINGS = "cuda-bindings is not installed: pip install 'llmc[cuda]'"


class Gpu(Protocol):
    """A GPU: its name, compute capability (90 for 9.0) and bytes of memory."""

    @property
    def name(self) -> str: ...
    @property
    def sm(self) -> int: ...
    @property
    def memory(self) -> int: ...


Gpus = Sequence[Gpu] | None
"""The GPUs of a machine that is not this one; None is this one."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine that a process may use, none if it has no driver."""
    from .cuda.gpus import devices

    return tuple(devices())


def has_bindings() -> bool:
    """Whether the driver can be called from here (the extra "cuda")."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # of "cuda", their namespace
        return False


def _cpu(_gpus: Gpus, _shared: int) -> str:
    return ""


def _cuda(sm: int, there: Gpus, shared: int) -> str:
    present = gpus() if there is None else there
    if not present:
        return "no NVIDIA GPU here" if there is None else "no NVIDIA GPU"
    lacking = [lacks(sm, shared, gpu.sm) for gpu in present]
    if "" in lacking:
        return _NO_BINDINGS if there is None and not has_bindings() else ""
    names = [f"this GPU ({gpu.name})" if there is None else gpu.name for gpu in present]
    reasons = []
    for gpu, name, reason in zip(present, names, lacking, strict=True):
        fits = runs_on(sm, gpu.sm)
        reasons.append((reason, f"{name} has {SHARED[gpu.sm] if fits else capability(gpu.sm)}"))
    first = max(reasons)[0]  # shared memory, where the capability would do
    return ", ".join(dict.fromkeys([first, *(have for reason, have in reasons if reason == first)]))


FITS: Mapping[str, Callable[[Gpus, int], str]] = {
    **{target: partial(_cuda, sm) for target, sm in SM.items()},
    "cpu": _cpu,
}
"""Target to the reason why a profile cannot run on a machine whose blocks take so many bytes of shared memory, or "";
best target first."""


def fits(engine: EngineFile, there: Gpus = None) -> dict[str, str]:
    """Every profile of the engine with the reason why it does not fit the machine (this one by default), or ""."""
    reasons = {}
    for name, profile in engine.manifest.profiles.items():
        check = FITS.get(profile.target)
        shared = int(profile.needs.get("shared", 0))
        reasons[name] = f"this llmc runs no target {profile.target!r}" if check is None else check(there, shared)
    return reasons


def choose(engine: EngineFile, name: str | None = None, *, simulated: bool = False) -> tuple[str, dict[str, str]]:
    """The profile to run, asked for or the best that fits, and all reasons.

    simulated: one of a GPU, which need not be here.

    Raises:
        EngineError: the engine has no such profile.
        RecipeError: to be simulated, and of no GPU.
        ResourceError: it does not fit this machine, or none does.
    """
    if name is not None:
        refuse_unknown(engine, name)
    if simulated:
        return planned(engine, name), {}
    reasons = fits(engine)
    if name is not None:
        if reasons[name]:
            raise ResourceError(
                f"{engine.path}: profile {name!r}", found=reasons[name], fix="another profile or machine"
            )
        return name, reasons
    fitting = [n for n, reason in reasons.items() if not reason]
    if not fitting:
        found = "; ".join(f"{n}: {reason}" for n, reason in reasons.items()) or "no profile at all"
        raise ResourceError(f"{engine.path}: a profile for this machine", found=found, fix="llmc build --target cpu")
    return best(engine, fitting), reasons


def refuse_unknown(engine: EngineFile, name: str) -> None:
    """EngineError if the engine has no profile of this name."""
    known = engine.manifest.profiles
    if name not in known:
        raise EngineError(
            f"{engine.path}: profile {name!r}", found=f"profiles {', '.join(known)}{nearest(name, known)}"
        )


def best(engine: EngineFile, names: Sequence[str]) -> str:
    """The profile of the best target among these, of which there is at least one."""
    order = list(FITS)
    return min(names, key=lambda name: order.index(engine.manifest.profiles[name].target))


def runnable(engine: EngineFile, chips: Iterable[int]) -> list[str]:
    """The profiles whose code runs on a GPU of one of these compute capabilities, by that alone."""
    there = tuple(chips)
    targets = {name: profile.target for name, profile in engine.manifest.profiles.items()}
    return [name for name, target in targets.items() if target in SM and any(runs_on(SM[target], c) for c in there)]


def planned(engine: EngineFile, name: str | None = None) -> str:
    """A profile with a launch plan, asked for or the best.

    Raises:
        EngineError: the engine has no such profile.
        RecipeError: it has no plan, or none has one.
    """
    if name is not None:
        refuse_unknown(engine, name)
    profiles = engine.manifest.profiles
    with_plan = [one for one, profile in profiles.items() if profile.target in SM]
    if name in with_plan:
        return name
    if with_plan and name is None:
        return best(engine, with_plan)
    asked = "a profile of a GPU" if name is None else f"profile {name!r} as one of a GPU"
    found = f"profiles {', '.join(profiles)}" if name is None else f"target {profiles[name].target}"
    fix = f"--profile {best(engine, with_plan)}" if with_plan else "llmc build --target sm_90"
    raise RecipeError(f"{engine.path}: {asked}", found=found, fix=fix)
