"""The first minutes on a lent GPU: calls of steps that need numpy and the driver's bindings only (bringup/).

python benchmarks/gpu_first.py CALL [--carry build/gpu-pack] [--out benchmarks/results] [--seconds N] [--only STEP]

Writes CALL.json after every item, and prints a short table last. Exit 0: every item ran
and passed. Exit 1: an item failed or was left out; the file has all results in both cases. One process supervises a
second one that measures, and restarts it at the next item after a crash, a hang or a broken context.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bringup import predicted, supervise
from bringup.bench import Bench
from bringup.calls import CALLS, Call
from bringup.carry import Carry
from bringup.cases import alone
from bringup.journal import Journal
from bringup.perform import items, perform
from bringup.supervise import Supervisor
from bringup.table import table

from llmc.runtime.errors import LlmcError
from llmc.runtime.profiles import has_bindings

_KILL_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("call", choices=CALLS)
    parser.add_argument("--carry", type=Path, default=Path("build/gpu-pack"), help="what gpu_pack.py made")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    parser.add_argument("--seconds", type=float, help="instead of the call's")
    parser.add_argument("--only", help="one step")
    parser.add_argument("--since", type=Path, help="results of the call first, for tuned; otherwise those in --out")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; needs no GPU")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    call = CALLS[options.call]
    if options.only is not None:
        chosen = tuple(step for step in call.steps if step.name == options.only)
        if not chosen:
            parser.error(f"--only {options.only}: one of {', '.join(step.name for step in call.steps)}")
        call = replace(call, steps=chosen)
    carry = Carry(options.carry)
    if options.case is not None:
        one_case(carry, options)
    elif options.dry_run:
        dry_run(carry, options.call, call)
    elif options.until is not None:
        measure(carry, options, call)
    else:
        sys.exit(not run(carry, options, call))


def run(carry: Carry, options: argparse.Namespace, call: Call) -> bool:
    """Supervise a call; True if every item ran and passed."""
    signal.signal(signal.SIGTERM, _interrupted)
    bench = Bench(carry, Journal.fresh(options.out, options.call), options.since)
    bench.journal.note(carried=carry.index["facts"], date=time.strftime("%Y-%m-%d", time.gmtime()))
    given = {name: getattr(options, name) for name in ("carry", "out", "only", "since")}

    def command(until: float) -> list[str]:
        return supervise.measuring(options.call, given, until)

    ok = Supervisor(call.steps, bench, command, options.seconds or call.seconds).run()
    journal = bench.journal
    print("\n".join([*table(journal), *predicted.lines(journal.outcomes, journal.head.get("card", ""))]), flush=True)
    return ok


def measure(carry: Carry, options: argparse.Namespace, call: Call) -> None:
    """Continue a call, then exit at once without cleanup: freeing a broken context takes seconds, or hangs."""
    ctypes.CDLL(None).prctl(_KILL_WITH_PARENT, signal.SIGKILL)
    bench = Bench(carry, Journal.reopened(options.out, options.call), options.since)
    code = perform(call.steps, bench, options.until)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def one_case(carry: Carry, options: argparse.Namespace) -> None:
    """Run a case by its name and print its result, for a tool that watches the process."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(json.dumps(alone(Bench(carry, Journal.fresh(Path(folder), options.call)), options.case)))
        except LlmcError as error:
            sys.exit(str(error))


def dry_run(carry: Carry, name: str, call: Call) -> None:
    """The steps and those of their items that are known before the run."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(carry, Journal.fresh(Path(folder), name))
        found = list(items(call.steps, bench))
    print(
        f"{name}: {call.seconds:g} s, carried for sm_{carry.sm}; bindings {'are' if has_bindings() else 'are not'} here"
    )
    print(f"  {len(carry.code)} kernels, {len(carry.data) / 2**20:.1f} MiB of code, {len(carry.plans)} plans")
    for step in call.steps:
        names = [item.name for one, _, item in found if one is step]
        print(f"  {step.name}: at most {step.seconds:g} s, {len(names)} items: {', '.join(names)}"[:300])


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
