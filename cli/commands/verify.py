"""`llmc verify`: checks that an engine is whole, and that it computes what it computed when it was built."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from ...runtime.errors import RecipeError, VerifyError
from ..common import console, extras, options, progress, simulate
from ..common.options import flag
from ..judge import trust

_AGREE = "best token equal at {top1_agree} of {positions} positions"
_WRONG = "largest error {max_error:.3g}, tolerance {tolerance:.3g}; "
_WHOLE = """\
{engine}: {tensors} tensors and {sections} sections, {bytes!b}{of}: all digests match
  probe on {device}: largest error {max_error:.2e} of {tolerance:.2e} allowed, """


def verify(
    engine: options.EngineFile,
    profile: options.Profile = None,
    simulated: options.Simulate = False,
    rebuild_kernels: Annotated[
        bool, flag("--rebuild-kernels", "Compile the kernels of all GPU profiles again, and compare every byte.")
    ] = False,
    trusted: trust.Trust = None,
    json: options.Json = False,
) -> None:
    """Check every byte of an engine and replay its golden probe."""
    from ...runtime.engine_file.file import verify_engine
    from ...runtime.probe import replay
    from ...runtime.profiles import choose

    path = Path(engine)
    judge = trust.judge(trusted, simulated=simulated, quiet=json)
    with verify_engine(path, progress.for_terminal(quiet=json)) as opened:
        size = {"bytes": opened.file_bytes, "tensors": len(opened.tensors), "sections": len(opened.sections)}
        size["files"] = len(opened.parts)
        chosen, reasons = choose(opened, profile, simulated=simulated)
    rebuilt = _rebuild(path, quiet=json) if rebuild_kernels else None
    report = replay(path, chosen, make_device=simulate.stand_in(simulated), judge=judge)
    if not report.ok:
        raise VerifyError(
            f"expected profile {chosen!r} of {engine} to compute what it computed when it was built",
            found=console.fill(_WRONG + _AGREE, asdict(report)),
            fix="the same versions as in `llmc inspect`, or build the engine again",
        )
    facts = {
        **asdict(report),
        **size,
        "profile": chosen,
        "simulated": simulated,
        "rebuilt_kernels": rebuilt,
        "do_not_fit": {name: reason for name, reason in reasons.items() if reason},
    }
    again = [
        f"{engine}: profile {n}: {count} kernels compile to the same bytes\n" for n, count in (rebuilt or {}).items()
    ]
    device = f"{chosen}, simulated" if simulated else chosen
    of = f" in {facts['files']} files" if facts["files"] > 1 else ""
    text = console.fill(_WHOLE + _AGREE, facts, engine=engine, device=device, of=of)
    console.show(facts, "".join(again) + text, json)


def _rebuild(path: Path, *, quiet: bool) -> dict[str, int]:
    """Compile the kernels of each GPU profile again, and count those with the same bytes.

    Raises:
        VerifyError: bytes differ.
    """
    extras.need("cuda-build", "--rebuild-kernels")
    from ...compiler.targets.cuda.cubins.rebuild import rebuild
    from ...runtime.chips import SM
    from ...runtime.engine_file.file import EngineFile

    with EngineFile.open(path) as engine:
        names = [name for name, profile in engine.manifest.profiles.items() if profile.target in SM]
        if not names:
            raise RecipeError(
                f"expected a profile of a GPU in {path} with --rebuild-kernels",
                found=f"profiles {', '.join(engine.manifest.profiles)}",
                fix="no --rebuild-kernels",
            )
        return {name: rebuild(engine, name, progress.for_terminal(quiet=quiet)) for name in names}
