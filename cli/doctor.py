"""`llmc doctor`: what this machine and installation can do, and which profiles of an engine fit it."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated, Any

import typer

from . import console, extras, options

PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "tokenizers", "minijinja", "torch", "onnx", "onnx-ir")
Engine = Annotated[str | None, typer.Argument(metavar="[ENGINE]", help="An engine, to see which of its profiles fit.")]


def doctor(engine: Engine = None, json: options.Json = False) -> None:
    """Show what this machine and installation can do."""
    facts = _facts()
    if engine is not None:
        facts["engine"] = _engine_facts(engine)
    if json:
        console.out_json(facts)
    else:
        console.out(_text(facts))


def _facts() -> dict[str, Any]:
    from ..runtime import machine
    from ..runtime.ort import onnxruntime

    memory = machine.memory()
    return {
        "llmc": importlib.metadata.version("llmc"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "missing": {extra: list(absent) for extra in extras.EXTRAS if (absent := extras.missing(extra))},
        "cpu": machine.cpu_name(),
        "threads": machine.cpu_count(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "providers": onnxruntime.get_available_providers(),
    }


def _known_size(count: int) -> str:
    from ..runtime.machine import UNKNOWN

    return "unknown" if count == UNKNOWN else console.size(count)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _engine_facts(path: str) -> dict[str, Any]:
    from ..runtime.engine_file import EngineFile
    from ..runtime.profiles import choose, fits

    with EngineFile.open(path) as engine:
        reasons = fits(engine)
        chosen = choose(engine)[0] if "" in reasons.values() else None
    return {
        "path": path,
        "profile": chosen,
        "fit": [name for name, reason in reasons.items() if not reason],
        "do_not_fit": {name: reason for name, reason in reasons.items() if reason},
    }


def _text(facts: dict[str, Any]) -> str:
    lines = [
        f"llmc {facts['llmc']}, Python {facts['python']}, {facts['system']}",
        "  " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items()),
        f"  {facts['cpu']}: {facts['threads']} threads",
        f"  memory {_known_size(facts['memory_bytes'])}, available {_known_size(facts['memory_available_bytes'])}",
        f"  ONNX Runtime providers: {', '.join(facts['providers'])}",
    ]
    for extra, absent in facts["missing"].items():
        lines.append(f"  extra {extra!r} is not installed ({', '.join(absent)}): pip install 'llmc[{extra}]'")
    if engine := facts.get("engine"):
        lines.append(
            f"{engine['path']}: " + (f"runs as {engine['profile']}" if engine["profile"] else "does not run here")
        )
        lines += [f"  {name}: fits" for name in engine["fit"]]
        lines += [f"  {name}: does not fit: {reason}" for name, reason in engine["do_not_fit"].items()]
    return "\n".join(lines)
