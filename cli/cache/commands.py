"""`llmc cache`: lists what llmc's caches hold, measures it, and removes it."""

from __future__ import annotations

import datetime
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...runtime.errors import RecipeError
from ..common import console, options
from ..common.help import SETTINGS, Command, Group
from ..common.options import flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...compiler.cache.listing import Entry, Kind

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHOWN_DIGITS = 12
_HELP = "List, measure and remove what llmc has cached."

app = typer.Typer(help=_HELP, cls=Group, context_settings=SETTINGS, rich_markup_mode=None, invoke_without_command=True)


@app.callback(help=_HELP)
def _alone(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.out(context.get_help())


def list_engines(json: options.Json = False) -> None:
    """List the engines that llmc run has built, the one used last first."""
    from ...compiler.cache import listing
    from ...compiler.cache.store import Store

    store = Store.default()
    found = listing.engines(store)
    others = [kind for kind in listing.kinds(store) if kind.name != "engines"]
    facts = {
        "folder": str(store.cache),
        "engines": [_entry_facts(entry) for entry in found],
        **{kind.name: _kind_facts(kind) for kind in others},
    }
    rows = [("key".ljust(_SHOWN_DIGITS), "model", "recipe", "targets", "size", "last used"), *map(_row, found)]
    lines = [console.table(rows)] if found else [f"no engine in {store.folder}"]
    lines += [f"  {entry.key[:_SHOWN_DIGITS]} cannot be read: {entry.damage}" for entry in found if entry.damage]
    lines += [f"{kind.name}: {_amount(kind)} ({kind.holds})" for kind in others if kind.files]
    console.show(facts, "\n".join(lines), json)


def usage(json: options.Json = False) -> None:
    """Show how many bytes each kind of cached files takes."""
    from ...compiler.cache import listing
    from ...compiler.cache.store import Store

    store = Store.default()
    found = listing.kinds(store)
    total = sum(kind.bytes for kind in found)
    facts = {"folder": str(store.cache), "bytes": total, **{kind.name: _kind_facts(kind) for kind in found}}
    rows = [("kind", "files", "size", "what"), *((k.name, str(k.files), console.size(k.bytes), k.holds) for k in found)]
    console.show(facts, f"{console.table(rows)}\n{store.cache}: {console.size(total)}", json)


def remove(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY|MODEL]...", help="Engines by key (4 digits or more), hub id, name or folder."),
    ] = None,
    everything: Annotated[bool, flag("--all", "All that llmc has cached, facts of machines too.")] = False,
    older_than: Annotated[
        str | None, flag("--older-than", "Engines not used for so long: 12h, 30d, 4w.", default="none", metavar="AGE")
    ] = None,
    json: options.Json = False,
) -> None:
    """Remove engines, or everything that is cached; a process that runs one of them goes on."""
    from ...compiler.cache import listing
    from ...compiler.cache.store import Store

    if sum((bool(names), everything, older_than is not None)) != 1:
        raise RecipeError("expected one of KEY or MODEL, --all and --older-than", fix="llmc cache rm --older-than 30d")
    seconds = None if older_than is None else _seconds(older_than)
    store = Store.default()
    chosen = listing.engines(store)
    if names:
        chosen = listing.select(chosen, names)
    elif seconds is not None:
        before = datetime.datetime.now().timestamp() - seconds
        chosen = [entry for entry in chosen if entry.last_used < before]
    rest = listing.remove_rest(store) if everything else []
    freed = sum(kind.bytes for kind in rest) + listing.remove(store, chosen)
    facts = {
        "removed": [_entry_facts(entry) for entry in chosen],
        **{kind.name: _kind_facts(kind) for kind in rest},
        "folder": str(store.cache),
        "bytes": freed,
    }
    lines = [f"removed {_row(entry)[0]} {entry.model or ''}: {console.size(entry.bytes)}" for entry in chosen]
    lines += [f"removed {kind.name}: {_amount(kind)}" for kind in rest if kind.files]
    console.show(facts, "\n".join([*lines, f"{console.size(freed)} freed in {store.cache}"]), json)


for _name, _command in {"list": list_engines, "du": usage, "rm": remove}.items():
    app.command(_name, cls=Command)(options.debugged(_command))


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([hdw])", text)
    if found is None:
        raise RecipeError("expected --older-than as hours, days or weeks, such as 12h, 30d or 4w", found=repr(text))
    return int(found[1]) * _UNITS[found[2]]


def _row(entry: Entry) -> Sequence[str]:
    used = datetime.datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M")
    model = entry.hub_id or entry.model or "damaged"
    targets = ", ".join(entry.targets)
    return entry.key[:_SHOWN_DIGITS], model, entry.recipe or "", targets, console.size(entry.bytes), used


def _entry_facts(entry: Entry) -> dict[str, Any]:
    used = datetime.datetime.fromtimestamp(entry.last_used, datetime.UTC).isoformat(timespec="seconds")
    return {**asdict(entry), "path": str(entry.path), "last_used": used}


def _kind_facts(kind: Kind) -> dict[str, Any]:
    return console.facts(kind, "files", "bytes")


def _amount(kind: Kind) -> str:
    return f"{console.counted(kind.files, 'file')}, {console.size(kind.bytes)}"
