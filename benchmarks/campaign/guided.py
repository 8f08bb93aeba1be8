"""One coverage-guided run for each reader with atheris, whose mutations are the campaign's and libFuzzer's.

`python -m campaign.guided TARGET FOLDER SECONDS SEED` is one of them, in a process that libFuzzer ends.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .targets import Target, targets
from .watch import GROWTH, HANG_S, MEMORY, judge

SECONDS = 60
"""Of each target."""
_READERS = (
    "llmc.runtime.files.safetensors",
    "llmc.runtime.files.strict_json",
    "llmc.runtime.files.records",
    "llmc.runtime.engine_file.manifest",
    "llmc.runtime.engine_file.file",
    "llmc.runtime.engine_file.bind",
    "llmc.runtime.cpu.onnx_scan",
    "llmc.runtime.plan.plan",
    "llmc.runtime.plan.formula",
    "llmc.runtime.text.tokenizer",
    "llmc.runtime.text.detokenizer",
    "llmc.runtime.text.chat",
    "llmc.compiler.checkpoint.tokenizer_check",
)
"""Modules whose branches guide."""
_LONGEST = 1 << 16
ROUNDS = 4
"""Processes in turn on one target and corpus: atheris keeps about 35 KB of each run, and no reader does."""


def run(share: float, seed: int, folder: Path) -> dict[str, Any]:
    """All targets, as many at once as there are CPUs."""
    if importlib.util.find_spec("atheris") is None:
        return {"skipped": "atheris is not installed: pip install -c constraints.txt -e '.[torture]'", "wrong": []}
    names = [*targets(folder, folder)]
    seconds = max(2, round(SECONDS * share))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = dict(zip(names, pool.map(lambda name: _guided(name, folder, seconds, seed), names), strict=True))
    wrong = [note for one in found.values() for note in one.pop("wrong")]
    return {"seconds_each": seconds, "targets": found, "wrong": wrong}


def _guided(name: str, folder: Path, seconds: int, seed: int) -> dict[str, Any]:
    place = folder / "guided" / name
    (place / "corpus").mkdir(parents=True)
    each, rounds = (max(2, seconds // ROUNDS), ROUNDS) if seconds > 2 * ROUNDS else (seconds, 1)
    runs, branches, wrong = 0, 0, []
    for index in range(rounds):
        command = [sys.executable, "-m", "campaign.guided", name, str(folder), str(each), str(seed + index)]
        begun, limit = Path(__file__).parent.parent, 3 * each + 120
        try:
            done = subprocess.run(command, cwd=begun, capture_output=True, text=True, errors="replace", timeout=limit)
        except subprocess.TimeoutExpired:
            wrong.append({"target": name, "hang": limit})
            continue
        ran = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        runs += int(ran[1]) if ran else 0
        branches = max([branches, *map(int, re.findall(r"cov: (\d+)", done.stderr))])
        if done.returncode:
            kept = {file.name: file.read_bytes()[:2000].hex() for file in place.glob("found-*")}
            wrong.append({"target": name, "death": done.returncode, "said": done.stderr[-600:], "inputs": kept})
    notes = place / "notes"
    wrong += [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
    return {"runs": runs, "branches": branches, "wrong": wrong}


def _mutated(target: Target, data: bytes, size: int, seed: int) -> bytes:
    import atheris

    chosen = random.Random(seed)
    try:
        made = target.damage(chosen, data) if chosen.random() < 0.7 else atheris.Mutate(data, size)
    except Exception:  # the data are no document any more
        made = atheris.Mutate(data, size)
    return made[:size]


def _instrument() -> None:
    """Let the branches of the readers count."""
    import atheris

    instrument = atheris.instrument_func  # pyright: ignore[reportAttributeAccessIssue]
    for name in _READERS:
        module = importlib.import_module(name)
        for key, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType) and value.__module__ == name:
                setattr(module, key, instrument(value))
            elif isinstance(value, type) and value.__module__ == name:
                for attribute, method in list(vars(value).items()):
                    if isinstance(method, types.FunctionType):
                        setattr(value, attribute, instrument(method))


def _main(name: str, folder: Path, seconds: int, seed: int) -> None:
    import atheris

    place = folder / "guided" / name
    corpus = place / "corpus"
    target = targets(folder, place)[name]
    for index, data in enumerate(target.seeds):
        (corpus / str(index)).write_bytes(data)
    _instrument()
    known: set[str] = set()

    def one(data: bytes) -> None:
        notes, _ = judge(target, data)
        for note in notes:
            kind = "/".join(str(note.get(key)) for key in ("foreign", "at", "message", "slow", "memory"))
            if kind not in known and len(known) < 20:
                known.add(kind)
                with (place / "notes").open("a") as file:
                    file.write(json.dumps({"target": name, **note, "input": data[:2000].hex()}) + "\n")

    def mutate(data: bytes, size: int, number: int) -> bytes:
        return _mutated(target, data, size, number)

    flags = {
        "max_total_time": seconds,
        "seed": 1 + seed,
        "max_len": _LONGEST,
        "timeout": int(HANG_S),
        "rss_limit_mb": (MEMORY + 2 * GROWTH) >> 20,
        "print_final_stats": 1,
        "artifact_prefix": f"{place}/found-",
        "verbosity": 1,
    }
    options = [f"-{key}={value}" for key, value in flags.items()]
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
