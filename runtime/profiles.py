"""Which profile of an engine runs on this machine or on another, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from .engine_file import EngineFile
from .errors import EngineError, RecipeError, ResourceError
from .executor import Executor
from .strict_json import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .paged import MakeDevice

SM = {f"sm_{sm}": sm for sm in (120, 100, 90, 89, 80)}
"""Targets that are NVIDIA GPUs, and their compute capability times ten; best first."""
_WITHIN_MAJOR = (80, 89)
"""Their cubins also run on later chips of the same major; those of newer ones are specific to their chip."""
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
    from .cuda.probe import devices

    return tuple(devices())


def has_bindings() -> bool:
    """Whether the driver can be called from here (the extra "cuda")."""
    try:
        return find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # of "cuda", their namespace
        return False


def runs_on(sm: int, chip: int) -> bool:
    """Whether code compiled for compute capability `sm` runs on a chip of `chip`."""
    later = sm in _WITHIN_MAJOR and sm // 10 == chip // 10 and sm % 10 <= chip % 10
    return sm == chip or later


def capability(sm: int) -> str:
    """Compute capability as NVIDIA writes it: 90 is 9.0."""
    return f"{sm // 10}.{sm % 10}"


def _cpu(_gpus: Gpus) -> str:
    return ""


def _cuda(sm: int, there: Gpus) -> str:
    present = gpus() if there is None else there
    if not present:
        return "no NVIDIA GPU here" if there is None else "no NVIDIA GPU"
    if any(runs_on(sm, gpu.sm) for gpu in present):
        return _NO_BINDINGS if there is None and not has_bindings() else ""
    names = [f"this GPU ({gpu.name})" if there is None else gpu.name for gpu in present]
    have = [f"{name} has {capability(gpu.sm)}" for name, gpu in zip(names, present, strict=True)]
    return f"needs compute capability {capability(sm)}, {', '.join(dict.fromkeys(have))}"


FITS: Mapping[str, Callable[[Gpus], str]] = {
    **{target: partial(_cuda, sm) for target, sm in SM.items()},
    "cpu": _cpu,
}
"""Target to the reason why a profile cannot run on a machine ("" if it can), best target first."""


def fits(engine: EngineFile, there: Gpus = None) -> dict[str, str]:
    """Every profile of the engine with the reason why it does not fit the machine (this one by default), or ""."""
    reasons = {}
    for name, profile in engine.manifest.profiles.items():
        check = FITS.get(profile.target)
        reasons[name] = f"this llmc runs no target {profile.target!r}" if check is None else check(there)
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


def open_executor(
    engine: EngineFile,
    name: str,
    *,
    threads: int | None = None,
    max_batch: int | None = None,
    make_device: MakeDevice | None = None,
) -> Executor:
    """Load a profile; the executor owns `engine` from then on.

    `max_batch` bounds the sequences at once (default: the profile's own). `make_device` makes what stands in for a GPU.
    """
    if engine.manifest.profiles[name].target in SM:
        from .paged import PagedExecutor

        return PagedExecutor(engine, name, make_device or _real_device(), max_batch=max_batch)
    from .cpu import CpuExecutor

    return CpuExecutor(engine, name, threads=threads, max_batch=max_batch)


def _real_device() -> MakeDevice:
    from .cuda.device import CudaDevice

    return CudaDevice
