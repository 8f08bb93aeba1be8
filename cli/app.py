"""The commands in one application, and the one place where errors become exit codes."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import FrameType
from typing import Annotated

import typer

from ..runtime import environment
from ..runtime.errors import DISTRIBUTION, LlmcError, ResourceError
from ..runtime.guard.limits import leave_time_to_end
from ..runtime.guard.shortage import shortage
from ..runtime.progress import debugging, set_debug_level
from .common import console, options
from .common.exits import ENVIRONMENT, INTERNAL, INTERRUPTED, TERMINATED, USAGE
from .common.help import SETTINGS, Command, Group

_COMMANDS = {
    "Build": {
        "plan": ".plan.plan:plan",
        "build": ".commands.build:build",
        "families": ".facts.families:families",
        "recipes": ".commands.bundled:recipes",
        "passes": ".commands.passes:passes",
        "kernels": ".commands.kernels:kernels",
    },
    "Run": {"run": ".commands.run:run"},
    "Judge": {
        "inspect": ".commands.inspect:inspect",
        "verify": ".commands.verify:verify",
        "eval": ".commands.evaluate:evaluate",
        "bench": ".commands.bench:bench",
    },
    "Machine": {"doctor": ".commands.doctor:doctor", "tune": ".commands.tune:tune", "cache": ".cache.commands:app"},
}
"""By group and name, the function of each command, or its own application."""
_NAMES = frozenset(name for group in _COMMANDS.values() for name in group)
_SHORT = frozenset(("-h", "--help", "--version"))
"""Answered at once, and not by `console`."""


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """The command that the arguments name, or all of them: importing and making all takes a quarter of a second."""
    app = typer.Typer(
        name="llmc",
        help="Compile Hugging Face checkpoints into engine files, and run them.",
        cls=Group,
        context_settings=SETTINGS,
        rich_markup_mode=None,  # plain help takes half the time to show
        pretty_exceptions_enable=False,
    )
    wanted = _NAMES.intersection(arguments[:1]) or _NAMES
    for group, commands in _COMMANDS.items():
        for name, where in commands.items():
            if name in wanted:
                _add(app, group, name, where)
    app.callback()(_root)
    return app


def _add(app: typer.Typer, group: str, name: str, where: str) -> None:
    module, _, attribute = where.partition(":")
    command = getattr(import_module(module, __package__), attribute)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name, rich_help_panel=group)
    else:
        app.command(name, cls=Command, rich_help_panel=group)(options.debugged(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # of all commands, the one that needs it

        console.out(f"llmc {version(DISTRIBUTION)}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Compile Hugging Face checkpoints into engine files, and run them."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Texts go to stderr, with --json an object also to stdout."""
    app = application(arguments)
    console.prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGXCPU"):  # not on Windows
        signal.signal(signal.SIGXCPU, partial(_out_of_time, leave_time_to_end()))
    json_wanted = _wants_json(_flags(arguments)) or environment.json()
    for warning in environment.unknown():
        console.note(f"llmc: {warning}")
    if arguments and not (json_wanted or _SHORT.intersection(arguments)):
        console.starting(typed="-" in arguments)
    try:
        if not any(one.partition("=")[0] == "--debug" for one in _flags(arguments)):  # the flag goes before LLMC_DEBUG
            set_debug_level(None)
        code = app(args=list(arguments) or ["--help"], prog_name="llmc", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SystemExit as exit_:  # of SIGTERM and of a closed pipe
        return exit_.code if isinstance(exit_.code, int) else INTERNAL
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        return _fail(
            USAGE,
            "UsageError",
            f"cannot read the command line: {error.format_message()}\n  try: {_help_of(arguments)}",
            json_wanted,
        )
    except LlmcError as error:
        return _fail(error.exit_code, type(error).__name__, str(error), json_wanted)
    except Exception as error:
        return _fail(*_unforeseen(error), json_wanted)
    finally:
        console.begin()  # a command may have nothing to say
        if hasattr(signal, "SIGXCPU"):  # what is done needs no word of the time that is over; Python would be killed
            signal.signal(signal.SIGXCPU, signal.SIG_IGN)


def _unforeseen(error: Exception) -> tuple[int, str, str]:
    """Exit code, class and message of an exception that no room of the package has foreseen."""
    if lacking := shortage(error):
        return ENVIRONMENT, "ResourceError", str(lacking)
    if isinstance(error, OSError):
        refused = f"cannot use {error.filename}" if error.filename else "cannot go on: the system refused"
        return ENVIRONMENT, "ResourceError", f"{refused}\n  found: {error.strerror or error}"
    reason = f"cannot go on: a bug in llmc: {type(error).__name__}: {error}".replace("\n", " ")
    return INTERNAL, "InternalError", f"{reason}\n  try: --debug 1 for the traceback"


def _flags(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments before a lone `--`, after which nothing is a flag."""
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _wants_json(flags: Sequence[str]) -> bool:
    """True with --json, or --format json."""
    return "--json" in flags or "--format=json" in flags or ("--format", "json") in pairwise(flags)


def _help_of(arguments: Sequence[str]) -> str:
    """The `--help` command for a command line."""
    named = arguments[0] if arguments else ""
    return f"llmc {named} --help" if named in _NAMES else "llmc --help"


def _fail(code: int, kind: str, message: str, json_wanted: bool) -> int:
    if debugging(1):
        console.note(traceback.format_exc(), end="")
    console.note(f"llmc: {message}")
    if json_wanted:
        try:
            console.out_json({"error": {"class": kind, "message": message, "exit_code": code}})
        except (LlmcError, SystemExit):
            return code  # stdout is closed: keep the exit code of the first failure
    return code


def _out_of_time(limit: int | None, number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # it comes again each second
    asked = "cannot go on: the processor time that this process may use is over"
    raise ResourceError(asked, found=f"ulimit -t {limit}", fix="a higher limit")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # an exception, so that `with` blocks remove what is half written
    sys.exit(TERMINATED)
