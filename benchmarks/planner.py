"""Holds the planner's cost model against throughput and latency that others have published.

python benchmarks/planner.py [--fit]      writes results/planner.json, docs/planner.md and docs/planner.svg

With --fit the constants are fitted to the H100 columns first, in about a minute, and printed for
compiler/planner/rates.py. No GPU is needed, and no weight is made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from published import page, plot
from published.evaluate import evaluated
from published.fit import fitted

from llmc.compiler.planner.rates import FITTED

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "planner.json"
PAGE, PICTURE = ROOT / "docs" / "planner.md", ROOT / "docs" / "planner.svg"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants first")
    rates = FITTED
    if parser.parse_args().fit:
        rates = fitted()
        print("FITTED = Rates(", *(f"    {name}={value}," for name, value in vars(rates).items()), ")", sep="\n")
    commit = ["git", "rev-parse", "--short", "HEAD"]
    found: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": subprocess.run(commit, cwd=ROOT, capture_output=True, text=True).stdout.strip(),
        **evaluated(rates),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page.written(found), encoding="utf-8")
    PICTURE.write_text(plot.drawn(found), encoding="utf-8")
    for table in found["tables"]:
        print(f"{table['title']}: median error {table['median']:.1%}, worst {table['worst']:.1%}", file=sys.stderr)


if __name__ == "__main__":
    main()
