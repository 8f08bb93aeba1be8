"""Says what stands at a path that is no engine, and what to do: most often `llmc build` first."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path

from ..errors import EngineError
from ..files.mistaken import foreign_format, mistaken_address, near_path, parse_hub_id
from ..files.outputs import FileKind
from .shards import is_shard_name

_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_LOOKED_AT = 100
"""Files of a folder."""


def refuse_other(path: Path, engine: FileKind) -> None:
    """Refuse a path that is known to be something else. A file that may be an engine passes, also a damaged one.

    Raises:
        EngineError: nothing is there, or a checkpoint, a hub id, an address, or weights of another program.
    """
    if path.is_dir():
        raise _folder(path, engine)
    if not path.exists():
        raise _absent(path, engine)
    if not path.is_file() or path.suffix == engine.suffix:
        return
    with suppress(OSError):
        if engine.matches(path):
            return
    asked = f"expected an engine at {path}"
    if other := foreign_format(path):
        found, fix = other
        raise EngineError(asked, found=found, fix=f"{fix}, then llmc build")
    if path.suffix in (".safetensors", ".json") and (path.parent / _CONFIG).is_file():
        raise EngineError(asked, found="a file of a checkpoint", fix=build_first(path.parent, engine))


def build_first(checkpoint: str | Path, engine: FileKind) -> str:
    """The command that makes an engine of a folder or a hub id, as the fix of an error."""
    name = Path(
        Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else str(checkpoint).partition("@")[0]
    ).name
    output = f"{name}{engine.suffix}"
    return f"llmc build {shlex.quote(str(checkpoint))} -o {shlex.quote(output)} first, then {shlex.quote(output)} here"


def _folder(path: Path, engine: FileKind) -> EngineError:
    asked = f"expected an engine at {path}"
    if (path / _CONFIG).is_file():
        return EngineError(asked, found="a checkpoint folder", fix=build_first(path, engine))
    engines: list[Path] = []
    with suppress(OSError):
        engines = sorted(one for one in path.glob(f"*{engine.suffix}") if not is_shard_name(one.name))
    if engines:
        return EngineError(asked, found=f"a folder with {len(engines)} of them", fix=f"the file, such as {engines[0]}")
    if (path / _ADAPTER).is_file():
        return EngineError(asked, found="an adapter (LoRA)", fix="merge it into its base model, then llmc build")
    with suppress(OSError):
        names = sorted(path.iterdir())
        if not names:
            return EngineError(asked, found="an empty folder", fix="a file that llmc build wrote")
        for one in names[:_LOOKED_AT]:
            if other := foreign_format(one):
                return EngineError(asked, found=f"a folder with {other[0]}", fix=f"{other[1]}, then llmc build")
    return EngineError(asked, found="a folder", fix=f"a file that llmc build wrote, such as model{engine.suffix}")


def _absent(path: Path, engine: FileKind) -> EngineError:
    text = str(path)
    if address := mistaken_address(text):
        found, fix = address
        shown = text.replace(":/", "://", 1)  # a path keeps one of two slashes
        return EngineError(f"expected an engine, not {shown}", found=found, fix=f"{fix}, then llmc build")
    near = near_path(path)
    hub_id = parse_hub_id(text)
    if hub_id is not None and path.suffix != engine.suffix and not path.parent.is_dir():
        fix = build_first(str(hub_id), engine)
        return EngineError(f"expected an engine, not {text}", found="no such file; it may be an id of the hub", fix=fix)
    # not beside a likelier hint, and not for what has the name of a file
    fix = "" if near or path.suffix else "a file that llmc build wrote; a checkpoint for llmc run: a folder or org/name"
    return EngineError(f"cannot open {path}", found=f"No such file or directory{near}", fix=fix)
