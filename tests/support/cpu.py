"""What this machine's CPU has: texts and bits of int8 activations are those of CPUs with AVX-512 and VNNI."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
HAS_VNNI = _CPUINFO.exists() and "avx512_vnni" in _CPUINFO.read_text()
