"""The large linears of a plan alone, with its own tiles, and torch's products of the same shapes in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gpu_torch

from llmc.compiler.targets.cuda.cubins.compile import compile_variants, variant_of
from llmc.compiler.targets.cuda.kernels.linear.tiles import Tile
from llmc.compiler.targets.cuda.tuning.measure import Effort, Form, measure
from llmc.compiler.targets.cuda.tuning.tune import KINDS, Linear, contents_of, linears_of
from llmc.runtime.cuda.driver import Driver
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.plan.plan import Module, Plan
from llmc.runtime.progress import NO_PROGRESS

LARGE = ("large", "fp8")


def large_linears(plan: Plan) -> list[Linear]:
    """The distinct linears over the tokens of the largest program, those with the most bytes first."""
    most = plan.programs[-1].tokens
    return [linear for linear in linears_of(plan) if linear.kind in LARGE and linear.tokens == most]


def linear_row(driver: Driver, linear: Linear, engine: EngineFile, plan: Plan, tokens: int) -> dict[str, Any]:
    """One linear's speed, and torch's with the same shape."""
    linear = replace(linear, sizes={**linear.sizes, "tokens": tokens})
    call = linear.call(tile_of(linear, plan), plan.sm)
    (cubin,) = compile_variants([variant_of(call)], plan.sm, progress=NO_PROGRESS).values()
    weights = engine.manifest.profiles[f"sm_{plan.sm}"].weights
    (seconds,) = measure(
        driver,
        [Form(call, cubin)],
        contents_of(linear, engine, plan, weights),
        linear.weights,
        linear.sizes,
        effort=Effort(rounds=10, copies=8),
        within_limit=lambda: True,
    ) or [None]
    assert seconds is not None, "the first form is what others are compared with"
    theirs = gpu_torch.products(tokens, linear.n, linear.k, linear.kind == "fp8")
    return row(linear, tokens, seconds, theirs)


def row(linear: Linear, tokens: int, seconds: float, theirs: Mapping[str, float]) -> dict[str, Any]:
    """Times as speeds; theirs: torch's seconds by name of the product."""
    operations = 2 * tokens * linear.n * linear.k
    peers = {name: operations / taken / 1e12 for name, taken in theirs.items()}
    ours = operations / seconds / 1e12
    return {
        "kind": linear.kind,
        "format": linear.format,
        "n": linear.n,
        "k": linear.k,
        "tokens": tokens,
        "seconds": seconds,
        "tflops": ours,
        "torch_tflops": peers,
        "percent_of_torch": 100 * ours / max(peers.values()) if peers else None,
    }


def tile_of(linear: Linear, plan: Plan) -> Tile:
    """The tile that the plan has for a linear."""
    module = next(
        module for module in plan.modules if KINDS.get(module.kernel) == linear.kind and _same(module, linear, plan)
    )
    made = module.constants
    blocks = made["BLOCK_N"], made["BLOCK_K"], made["BLOCK_M"], made.get("SPLITS", 1)
    return Tile(*map(int, blocks), warps=module.warps, stages=module.stages)


def _same(module: Module, linear: Linear, plan: Plan) -> bool:
    """Whether a module computes a linear in the plan's largest program."""
    used = {launch.module for launch in plan.programs[-1].launches}
    shape = module.constants["N"], module.constants["K"], module.constants.get("FORMAT", "fp8")
    return plan.modules.index(module) in used and shape == (linear.n, linear.k, linear.format)
