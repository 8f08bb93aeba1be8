"""Kills builds, crowds an engine, damages every input and changes the surroundings, and keeps what came of it.

python benchmarks/torture.py [--share 1] [--seed 0] [--only parsers] [--out benchmarks/results/torture.json]; `make
torture` runs it: 20 minutes on two free CPUs. Only the loopback and one temporary folder are used. A smaller share is a
rehearsal. `--case tokenizer/1234` repeats one case of the parsers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # whole input comes from the tests' support
PARTS = ("seeds", "kills", "crowd", "parsers", "guided", "surroundings")
"""Modules of `campaign`, each run in a process of its own."""
LIMIT_S = 900
"""Seconds of a part, which limits itself before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="share of all cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=PARTS[1:], help="only these parts")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/torture.json")
    parser.add_argument("--case", metavar="TARGET/NUMBER", help="repeat one case of the parsers")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        found = importlib.import_module(f"campaign.{options.part}").run(options.share, options.seed, options.folder)
        (options.folder / f"{options.part}.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="llmc-torture-") as folder:
        if options.case:
            _again(Path(folder), options)
        else:
            _campaign(Path(folder), options)


def _again(folder: Path, options: argparse.Namespace) -> None:
    from campaign import parsers

    _part("seeds", folder, options)
    target, _, case = options.case.partition("/")
    parsers.again(target, options.seed, int(case), folder)


def _campaign(folder: Path, options: argparse.Namespace) -> None:
    from llmc.runtime.machine import cpu_count, cpu_name

    commit = _git("rev-parse", "--short", "HEAD")
    changed = len(_git("status", "--porcelain", "--untracked-files=no").splitlines())
    began = time.monotonic()
    parts = {name: _part(name, folder, options) for name in PARTS if name in ("seeds", *(options.only or PARTS))}
    wrong = [{"part": name, **note} for name, part in parts.items() for note in part.pop("wrong", [])]
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit,
        "changed_files": changed,
        "machine": f"{cpu_name()}, {cpu_count()} threads",
        "share": options.share,
        "seed": options.seed,
        "seconds": round(time.monotonic() - began),
        "parts": parts,
        "wrong": wrong,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(wrong)} findings in {result['seconds']} s: {options.out}")
    sys.exit(1 if wrong else 0)


def _part(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a part found, in a process of its own whose end is a finding if it is no success."""
    (folder / "tmp").mkdir(exist_ok=True)
    variables = {name: text for name, text in os.environ.items() if not name.startswith("LLMC_")}
    variables |= {"TMPDIR": str(folder / "tmp"), "LLMC_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    numbers = ["--share", str(options.share), "--seed", str(options.seed)]
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "benchmarks/torture.py"),
        "--part",
        name,
        "--folder",
        str(folder),
    ]
    began = time.monotonic()
    try:
        code = subprocess.run([*command, *numbers], env=variables, timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        code = -1
    seconds = round(time.monotonic() - began, 1)
    made = folder / f"{name}.json"
    found = json.loads(made.read_text()) if made.exists() else {"wrong": [{"ended": code}]}
    print(f"{name}: {len(found.get('wrong', []))} findings in {seconds} s", flush=True)
    return {"part_seconds": seconds, **found}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
