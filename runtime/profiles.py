"""Which profile of an engine runs on this machine, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .engine_file import EngineFile
from .errors import EngineError, ResourceError
from .executor import Executor
from .manifest import Profile
from .strict_json import nearest


def _no_reason(_profile: Profile) -> str:
    return ""


FITS: Mapping[str, Callable[[Profile], str]] = {"cpu": _no_reason}
"""Target to the reason why a profile cannot run here ("" if it can), best target first."""


def fits(engine: EngineFile) -> dict[str, str]:
    """Every profile of the engine with the reason why it does not fit this machine, or ""."""
    reasons = {}
    for name, profile in engine.manifest.profiles.items():
        check = FITS.get(profile.target)
        reasons[name] = f"this llmc runs no target {profile.target!r}" if check is None else check(profile)
    return reasons


def choose(engine: EngineFile, name: str | None = None) -> tuple[str, dict[str, str]]:
    """The profile to run, asked for or the best that fits, and all reasons.

    Raises:
        EngineError: the engine has no such profile.
        ResourceError: it does not fit this machine, or none does.
    """
    reasons = fits(engine)
    if name is not None:
        if name not in reasons:
            found = f"profiles {', '.join(reasons)}{nearest(name, reasons)}"
            raise EngineError(f"{engine.path}: profile {name!r}", found=found)
        if reasons[name]:
            raise ResourceError(
                f"{engine.path}: profile {name!r}", found=reasons[name], fix="another profile or machine"
            )
        return name, reasons
    order = list(FITS)
    fitting = [n for n, reason in reasons.items() if not reason]
    if not fitting:
        found = "; ".join(f"{n}: {reason}" for n, reason in reasons.items()) or "no profile at all"
        raise ResourceError(f"{engine.path}: a profile for this machine", found=found, fix="llmc build --target cpu")
    return min(fitting, key=lambda n: order.index(engine.manifest.profiles[n].target)), reasons


def open_executor(
    engine: EngineFile, name: str, *, threads: int | None = None, max_batch: int | None = None
) -> Executor:
    """Load a profile; the executor owns `engine` from then on.

    `max_batch` bounds the sequences at once (default: the profile's own).
    """
    from .cpu import CpuExecutor

    return CpuExecutor(engine, name, threads=threads, max_batch=max_batch)
