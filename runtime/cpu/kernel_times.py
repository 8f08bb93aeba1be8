"""What ONNX Runtime itself measures of kernels, told when a profile's sessions end: --debug 3 of a cpu profile."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..files import temporary
from ..progress import debug, debugging

_KERNEL = "_kernel_time"


def measure(options: Any) -> None:
    """Let a session with these options measure its kernels, if that is to be told."""
    if debugging(3):
        options.enable_profiling = True
        options.profile_file_prefix = f"{temporary.make('times')}/"


def tell(sessions: Iterable[Any]) -> None:
    """The kernels of all steps by operator, slowest first."""
    if not debugging(3):
        return
    times: defaultdict[str, list[int]] = defaultdict(list)
    for path in filter(None, [session.end_profiling() for session in sessions]):
        events = json.loads(Path(path).read_text(encoding="utf-8"))
        temporary.remove(Path(path).parent)
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(_KERNEL):
                times[event["args"]["op_name"]].append(event["dur"])
    total = sum(map(sum, times.values())) or 1
    for operator, spent in sorted(times.items(), key=lambda item: -sum(item[1])):
        share = 100 * sum(spent) / total
        debug(3, f"{operator}: {len(spent)} kernels, {sum(spent) / 1e3:.3f} ms, {share:.1f} %")
