"""A model small enough to know by heart, as an engine with a plan: what a device must compute of it is exact.

The next token of a sequence is (the sum of its tokens so far + BIAS) modulo VOCAB. Its tokens lie in a paged cache of
float32; the bias and the height of the winning logit are weights. So a wrong block, slot, slot, offset or parameter
changes the tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.fakes.toy_kernels import F32, KERNELS, MAX_BLOCKS, VOCAB
from support.plans import input_tensors

from llmc.compiler.engine.layout import MaxShardSize
from llmc.compiler.engine.writer import EngineWriter
from llmc.runtime.engine_file.bind import Concat, Expr, Slice, Stored, ToF32, to_json
from llmc.runtime.engine_file.manifest import CheckpointFacts, LayerCache, Lineage, Manifest, ModelFacts, Profile
from llmc.runtime.files.records import plain
from llmc.runtime.files.strict_json import canonical
from llmc.runtime.numbers import f32_to_bf16
from llmc.runtime.plan.plan import Argument, KVCache, Launch, MachineCode, Module, Plan, Program, Tensor

BIAS, HEIGHT = 5, 3.0
MAX_BATCH, MIXED_TOKENS = 4, 68

ARRAYS = {
    "bias.weight": np.array([BIAS, 0, 0, 0], F32),
    "height.weight": f32_to_bf16(np.array([HEIGHT, 1.0], F32)),
    "left.weight": np.arange(12, dtype=np.uint8).reshape(3, 4),
    "right.weight": np.arange(100, 108, dtype=np.uint8).reshape(2, 4),
    "far.weight": np.arange(50, 58, dtype=np.uint8).reshape(2, 4),
}
GROUPS = (
    [Stored("bias.weight", "F32", (4,))],
    [Stored("height.weight", "BF16", (2,))],
    [Stored("left.weight", "U8", (3, 4)), Stored("right.weight", "U8", (2, 4))],
    [Stored("far.weight", "U8", (2, 4))],
)
_STORED = {stored.name: stored for group in GROUPS for stored in group}
_CODES = Concat((_STORED["left.weight"], _STORED["right.weight"]), 0)
WEIGHTS: Mapping[str, Expr] = {
    "bias": _STORED["bias.weight"],
    "height": ToF32(_STORED["height.weight"]),
    "codes": _CODES,
    "same codes": _CODES,
    "apart": Concat((_STORED["far.weight"], _STORED["left.weight"]), 0),
    "middle": Slice(_STORED["left.weight"], 0, 1, 3),
    "columns": Slice(_STORED["left.weight"], 1, 1, 3),
}
_DTYPES = {"F32": "f32", "U8": "u8"}
TENSORS: Mapping[str, Tensor] = {
    **{name: Tensor("weight", _DTYPES[e.dtype], tuple(map(str, e.shape))) for name, e in WEIGHTS.items()},
    **input_tensors(MAX_BLOCKS),
    "past": Tensor("cache", "f32", ("blocks", "1", "64", "1")),
    "last_tokens": Tensor("state", "i32", ("slots",)),
}


_ARGUMENTS = {
    "take": ("token_ids", "last_tokens", "past", "slot_mapping", "ids", "tokens"),
    "score": (
        "past",
        "block_tables",
        "positions",
        "logits_indices",
        "query_start_loc",
        "bias",
        "height",
        2.0,
        "logits",
        "#rows",
        "sequences",
    ),
    "score_all": ("past", "block_tables", "positions", "bias", "height", 2.0, "logits", "sequences"),
    "choose": ("logits", "sample_slots", "sampled", "status", "last_tokens", "#rows"),
}
_GRIDS = {
    "take": ("cdiv(tokens, 8)", "1", "1"),
    "score": ("rows", "2", "1"),
    "score_all": ("3 * sequences", "1", "1"),
    "choose": ("rows", "1", "1"),
}
SHARED = {"take": 0, "score": 60000, "score_all": 48 << 10, "choose": 49153}
IMAGES = {name: f"machine code of {name}".encode() for name in ("take", "score", "choose")}
IMAGES["score_all"] = IMAGES["score"]  # one cubin with two kernels
CUBINS = b"".join(IMAGES[name] for name in ("take", "score", "choose"))
TEXTS = {name: f"PTX of {'score' if name == 'score_all' else name}" for name in IMAGES}
PTX = "".join(TEXTS[name] for name in ("take", "score", "choose")).encode()


def _argument(given: object) -> Argument:
    if isinstance(given, float):
        return Argument(real=given)
    if given in ("tokens", "sequences", "#rows"):
        return Argument(size=str(given).removeprefix("#"))
    assert isinstance(given, str)
    return Argument(tensor=given)


def _program(decode: bool, tokens: int, sequences: int, rows: int) -> Program:
    buffers = {
        "ids": Tensor("buffer", "i32", ("tokens",), 0),
        "logits": Tensor("buffer", "f32", ("rows", str(VOCAB)), 512),
    }
    end = 512 + -(-4 * VOCAB * rows // 256) * 256
    buffers["sampled"], buffers["status"] = (
        Tensor("buffer", "i32", ("rows",), end),
        Tensor("buffer", "i32", ("rows",), end + 512),
    )
    names = ("take", "score_all" if decode else "score", "choose")
    launches = tuple(
        Launch(
            list(KERNELS).index(name),
            tuple(map(_argument, _ARGUMENTS[name])),
            _GRIDS[name],
            (),
            "0",
            "0",
            f"the {name}",
        )
        for name in names
    )
    return Program(decode, tokens, sequences, rows, end + 1024, buffers, launches)


def toy_plan(*, sm: int = 90, tensors: Mapping[str, Tensor] = TENSORS, ptx: bool = False) -> Plan:
    modules = tuple(
        Module(
            kernel=name,
            constants={},
            types=kernel.types,
            warps=8 if name == "score" else 4,
            stages=1,
            code=MachineCode(
                name, SHARED[name], 32, 0, False, 32 if name == "score_all" else 0,
                offset=CUBINS.index(IMAGES[name]), size=len(IMAGES[name]),
                ptx_offset=PTX.index(TEXTS[name].encode()) if ptx else 0, ptx_size=len(TEXTS[name]) if ptx else 0,
            ),
        )
        for name, kernel in KERNELS.items()
    )  # fmt: skip
    decode = tuple(_program(True, n, n, n) for n in (1, 2, 4))
    mixed = _program(False, MIXED_TOKENS, MAX_BATCH, MIXED_TOKENS)
    return Plan(
        sm,
        "bf16",
        MAX_BLOCKS,
        (KVCache(MAX_BLOCKS),),
        "0" * 64,
        "none",
        {**TENSORS, **tensors},
        modules,
        (*decode, mixed),
    )


def _manifest(profiles: Mapping[str, Profile], arrays: Collection[str]) -> Manifest:
    return Manifest(
        model=ModelFacts(
            "Toy", "toy", VOCAB, 4, 1, (LayerCache(1, 1),), 64 * MAX_BLOCKS, 8, "float32", False, None, ()
        ),
        formats={},
        profiles=profiles,
        lineage={name: Lineage((name,), "copy") for name in arrays},
        unused={},
        recipe={},
        recipe_digest="0" * 64,
        checkpoint=CheckpointFacts({}),
        tools={},
    )


def toy_ranks(path: Path, name: str, plans: Sequence[Plan]) -> Path:
    """An engine whose profile sm_90-`name` has a rank of each plan."""
    bindings = {weight: to_json(expr) for weight, expr in WEIGHTS.items()}
    folder = f"profiles/sm_90-{name}"
    with EngineWriter(path, [*GROUPS]) as writer:
        for array, numbers in ARRAYS.items():
            writer.write(array, 0, numbers)
        files = {"kernels.cubins": f"{folder}/kernels.cubins", "kernels.ptx": f"{folder}/kernels.ptx"}
        writer.section(files["kernels.cubins"], CUBINS)
        writer.section(files["kernels.ptx"], b"")
        whole = Profile("sm_90", "", {"sm": 90}, {}, 64 * MAX_BLOCKS, MAX_BATCH, 1e-2, split=name)
        ranks = []
        for rank, plan in enumerate(plans):
            own = f"{folder}/rank-{rank}"
            writer.section(f"{own}/plan.json", plan.to_json())
            caches = {"0": LayerCache(1, 1)}
            one = replace(whole, graph=f"{own}/plan.json", weights=bindings, split=None, caches=caches, files=files)
            ranks.append(f"{own}/profile.json")
            writer.section(ranks[-1], canonical(plain(one)))
        return writer.commit(_manifest({f"sm_90-{name}": replace(whole, ranks=tuple(ranks))}, ARRAYS))


def toy_engine(
    path: Path,
    plan: Plan | None = None,
    *,
    weights: Mapping[str, Expr] = WEIGHTS,
    more: Mapping[Stored, np.ndarray] | None = None,
    cubins: bytes = CUBINS,
    ptx: bytes = b"",
    most: MaxShardSize | None = None,
) -> Path:
    """An engine of the plan; `more` tensors follow those of the model. `most` bounds the size of its files."""
    arrays = {**ARRAYS, **{stored.name: array for stored, array in (more or {}).items()}}
    bindings = {name: to_json(expr) for name, expr in weights.items()}
    profile = Profile("sm_90", "profiles/sm_90/plan.json", {"sm": 90}, bindings, 64 * MAX_BLOCKS, MAX_BATCH, 1e-2)
    manifest = _manifest({"sm_90": profile}, arrays)
    with EngineWriter(path, [*GROUPS, *([stored] for stored in more or {})], most=most) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, array)
        writer.section("profiles/sm_90/plan.json", (plan or toy_plan()).to_json())
        writer.section("profiles/sm_90/kernels.cubins", cubins)
        writer.section("profiles/sm_90/kernels.ptx", ptx)
        return writer.commit(manifest)


def answer(prompt: tuple[int, ...], count: int) -> list[int]:
    """The tokens the toy model says after a prompt."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append((sum(tokens) + BIAS) % VOCAB)
    return tokens[len(prompt) :]
