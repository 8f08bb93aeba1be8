"""Small launch plans made by hand, and engines that hold them: for tests of what reads a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from support.engines import forge

from llmc.runtime.engine_file.manifest import Manifest, Profile
from llmc.runtime.plan.inputs import inputs_for
from llmc.runtime.plan.plan import Argument, KVCache, Launch, MachineCode, Module, Plan, Program, Tensor

LAYERS, KV_HEADS, SIZE = 2, 2, 16
WEIGHT_BYTES = 1000
BINARY = MachineCode(offset=0, size=100, entry="linear_kernel", shared=2048, registers=96, spills=0)


def input_tensors(max_blocks: int, *windows: KVCache) -> dict[str, Tensor]:
    """What `PagedExecutor` fills in, with room for two biases."""

    def second(name: str) -> tuple[str, ...]:
        return (str(max_blocks if name.startswith("block_tables") else 2),)

    return {
        name: Tensor("input", made.dtype, (made.size, *(second(name) if made.per_plan else ())))
        for name, made in inputs_for((KVCache(max_blocks), *windows)).items()
    }


def _launch(label: str, module: int, bytes: str, operations: str, grid: str = "cdiv(tokens, 2)") -> Launch:
    arguments = (Argument(tensor="w"), Argument(tensor="y"), Argument(size="tokens"))
    return Launch(module, arguments, (grid, "3", "1"), ("y",), bytes, operations, label)


def program(decode: bool, tokens: int, sequences: int) -> Program:
    """One linear a layer of WEIGHT_BYTES, and one launch that all layers share the form of."""
    launches = [
        _launch(f"model.layers.{layer}.down_proj_{40 + layer}", 0, f"{WEIGHT_BYTES} + 4 * tokens", "500 * tokens")
        for layer in range(LAYERS)
    ]
    launches.append(_launch("logits", 1, "10 * rows", "70000 * rows", "rows"))
    buffers = {"y": Tensor("buffer", "f32", ("tokens", "8"), 256)}
    return Program(decode, tokens, sequences, tokens, 256 + tokens * 32, buffers, tuple(launches))


def plan(sm: int = 90, **changes: Any) -> Plan:
    """Two layers, decode steps of 1 and 4 sequences, prompts of up to 36 tokens."""
    cache = Tensor("cache", "bf16", ("blocks", str(KV_HEADS), "64", str(SIZE)))
    made = Plan(
        sm=sm,
        activation="bf16",
        max_blocks=8,
        caches=(KVCache(8),),
        kernels="0" * 64,
        tactics="none",
        tensors={
            "w": Tensor("weight", "u8", (str(WEIGHT_BYTES),)),
            **input_tensors(8),
            "last_tokens": Tensor("state", "i32", ("slots",)),
            **{f"{part}.{layer}": cache for layer in range(LAYERS) for part in ("key", "value")},
        },
        modules=(
            Module("linear_kernel", {"N": 8}, ("bf16", "bf16", "i32"), 4, 2, BINARY),
            Module("logits_kernel", {}, ("bf16", "bf16", "i32"), 4, 2),
        ),
        programs=(program(True, 1, 1), program(True, 4, 4), program(False, 36, 4)),
    )
    return replace(made, **changes)


def windowed_plan() -> Plan:
    """The same, whose second layer has a window of 100 positions, a ring of three blocks."""
    ring = KVCache(3, 100)
    cache = Tensor("cache", "bf16", (ring.size, str(KV_HEADS), "64", str(SIZE)))
    changed = {**input_tensors(8, ring), "key.1": cache, "value.1": cache}
    return plan(caches=(KVCache(8), ring), tensors={**plan().tensors, **changed})


def with_plans(path: Path, target: Path, *sms: int, max_batch: int = 4, max_context: int = 512, **changes: Any) -> Path:
    """A copy of an engine with a profile sm_N more for each N; its probe is not theirs."""

    def profile(sm: int) -> Profile:
        return Profile(f"sm_{sm}", f"profiles/sm_{sm}/plan.json", {"sm": sm}, {}, max_context, max_batch, 0.03)

    def manifest(old: Manifest) -> Manifest:
        return replace(old, profiles={**old.profiles, **{f"sm_{sm}": profile(sm) for sm in sms}})

    sections = {f"profiles/sm_{sm}/plan.json": plan(sm, **changes).to_json() for sm in sms}
    return forge(path, target, sections=sections, manifest=manifest)
