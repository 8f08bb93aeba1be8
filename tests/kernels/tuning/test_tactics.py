"""Tables of tiles: what is read and refused, and that an engine is built with them, recorded, and as right as ever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.engines import NARROW, quantized_logits, relative, small_checkpoint, some_ids

import llmc
from llmc.cli.app import run
from llmc.compiler.targets import tactics_of
from llmc.compiler.targets.cuda.cubins.cache import source_digest
from llmc.compiler.targets.cuda.kernels.linear.cases import FORMATS, LLAMA_LAYERS
from llmc.compiler.targets.cuda.kernels.linear.tiles import Tile, default_tile, wrong_tile
from llmc.compiler.targets.cuda.tuning import tactics
from llmc.compiler.targets.cuda.tuning.tactics import Row, Table, load_table, parse_table
from llmc.compiler.targets.simulate.device import SimulatedDevice
from llmc.runtime.chips import CAPABILITIES
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import RecipeError
from llmc.runtime.plan.executor import PagedExecutor
from llmc.runtime.plan.plan import Plan
from llmc.runtime.scheduling.executor import ScheduledSequence

ROW = Row("small", 128, 256, "int4", 1, Tile(64, 128, 16, 2, 4, 3), 4000, 5000)
TABLE = Table(90, "NVIDIA H200", "13.0", "2026-01-31", "0" * 64, "3.9.0", (ROW,))
CONTEXT, VOCAB = NARROW["max_position_embeddings"], NARROW["vocab_size"]


def test_a_table_survives_its_file(tmp_path: Path):
    rows = (ROW, Row("large", 128, 256, "dense", 2050, Tile(128, 64, 128, 1, 8, 3), 7, 8), replace(ROW, tokens=64))
    table = replace(TABLE, gpu='odd "name": \\ é', rows=rows)
    table.write(tmp_path / "t.yaml")
    found = load_table(tmp_path / "t.yaml")
    assert set(found.rows) == set(rows) and replace(found, rows=()) == replace(table, rows=())
    assert found.digest == table.digest == replace(table, rows=rows[::-1]).digest
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]
    assert parse_table("t", replace(TABLE, rows=()).to_yaml()).rows == ()


def test_a_table_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    TABLE.write(tmp_path / "t.yaml")

    def interrupted(_file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(TABLE, rows=()).write(tmp_path / "t.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["t.yaml"]
    assert load_table(tmp_path / "t.yaml") == TABLE


def test_names_and_digests_are_of_what_counts():
    again = parse_table("t", b"# another remark\n" + TABLE.to_yaml())
    assert again.name == TABLE.name == f"NVIDIA H200 {TABLE.digest[:12]}"
    assert replace(TABLE, rows=(replace(ROW, ns=3999),)).digest != TABLE.digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version: 2", "version: 1", "t:2:10: version 1: this llmc reads 2"),
        ("sm: 90", "sm: 91", "no chip sm_91, known: 80, 86, 87, 89, 90, 100, 120"),
        ("sm: 90", "sm: 90\nsmm: 90", "unknown key 'smm' (did you mean 'sm'?)"),
        ('gpu: "NVIDIA H200"\n', "", "'gpu' is missing"),
        ("0" * 64, "0" * 63, "a digest, 64 lower-case hexadecimal digits"),
        ("block_n", "block_m0", "unknown key 'block_m0' (did you mean 'block_m'?)"),
        (", ns: 4000", "", "'ns' is missing"),
        ("kind: small", "kind: smal", "no 'smal' (did you mean 'small'?), known: small, large, fp8"),
        ("kind: small", "kind: fp8", "no 'int4', known: fp8"),
        ("format: int4", "format: in4", "no 'in4' (did you mean 'int4'?)"),
        ("splits: 2", "splits: 0", "expected > 0, found 0"),
        ("splits: 2", "splits: 3", "K = 256 in blocks of 128 does not divide into 3 parts"),
        (
            "block_n: 64",
            "block_n: 96",
            "small 128 x 256 int4, 1 token: block_n 96 is not a power of two from 32 to 256",
        ),
        ("block_k: 128", "block_k: 64", "block_k 64 is not a multiple of 128, the chunk of int4"),
        ("stages: 3", "stages: 9", "stages 9 is not from 1 to 8"),
        (", route: triton", "", "'route' is missing"),
        ("route: triton", "route: nativ", "no 'nativ' (did you mean 'native'?), known: triton, native"),
        ("splits: 2, warps: 4, stages: 3, route: triton", "splits: 1, warps: 4, stages: 3, route: native", "in int4"),
        (
            "format: int4, tokens: 1, block_n: 64, block_k: 128, block_m: 16, splits: 2, warps: 4, stages: 3",
            "format: dense, tokens: 1, block_n: 256, block_k: 128, block_m: 256, splits: 2, warps: 4, stages: 4",
            "small 128 x 256 dense, 1 token: 393216 bytes of shared memory, of at most 232448",
        ),
        ("n: 128", "n: 100000000", "more than 16384 blocks of outputs, the most with parts of K"),
    ],
)
def test_what_is_no_table_is_refused_at_its_place(old: str, new: str, message: str):
    text = TABLE.to_yaml().decode()
    assert old in text
    with pytest.raises(RecipeError) as caught:
        parse_table("t", text.replace(old, new, 1).encode())
    assert message in str(caught.value) and str(caught.value).startswith("cannot read t:")


def test_a_linear_measured_twice_is_refused():
    table = replace(TABLE, rows=(replace(ROW, tokens=3), replace(ROW, tokens=4)))
    with pytest.raises(RecipeError, match="4 tokens: measured twice, also as small 128 x 256 int4, 3 tokens"):
        parse_table("t", table.to_yaml())


def test_rows_are_found_by_the_size_of_the_step():
    tiles = replace(TABLE, rows=(replace(ROW, tokens=6),)).tiles
    found = [tokens for tokens in range(1, 20) if tactics.tile_key("small", 128, 256, "int4", tokens) in tiles]
    assert found == [5, 6, 7, 8]


def test_targets_get_the_given_table_else_the_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tactics, "_FOLDER", tmp_path)
    assert tactics_of(["cpu", "sm_90"], ()) == {}
    replace(TABLE, sm=80).write(tmp_path / "sm_80.yaml")
    assert tactics_of(["sm_80", "sm_90"], [TABLE]) == {"sm_80": replace(TABLE, sm=80), "sm_90": TABLE}
    other = replace(TABLE, sm=80, rows=())
    assert tactics_of(["sm_80"], [other]) == {"sm_80": other}
    with pytest.raises(RecipeError, match=r"for sm_90 \(NVIDIA H200\)\n  found: targets cpu"):
        tactics_of(["cpu"], [TABLE])
    with pytest.raises(RecipeError, match="two tables of tiles for sm_90"):
        tactics_of(["sm_90"], [TABLE, TABLE])


@pytest.mark.parametrize("sm", CAPABILITIES)
def test_the_heuristic_gives_tiles_a_table_may_have(sm: int):
    shapes = (*LLAMA_LAYERS, (128256, 4096))
    for n, k in shapes:
        for tokens in (1, 16, 17, 64):
            for format in FORMATS:
                assert not wrong_tile(
                    "small", n, k, format, tokens, default_tile("small", n, k, format, tokens, sm), sm
                )
        for format in FORMATS:
            assert not wrong_tile("large", n, k, format, 2048, default_tile("large", n, k, format, 2048, sm), sm)
        assert not wrong_tile("fp8", n, k, "fp8", 2048, default_tile("fp8", n, k, "fp8", 2048, sm), sm)


def test_bundled_tables_are_tables():
    for sm in CAPABILITIES:
        table = tactics.bundled(sm)
        assert table is None or table.sm == sm


def measured(*, kernels: str) -> Table:
    """Of 128 x 64 q|k|v, 384 x 64 gate|up and 64 x 192 down; behind attention there are 130 rows at most."""
    rows = (
        Row("small", 128, 64, "int8", 1, Tile(32, 64, 16, 1, 2, 2), 10, 20),
        Row("small", 384, 64, "int8", 64, Tile(32, 64, 64, 1, 4, 1), 10, 20),
        Row("small", 64, 192, "int8", 64, Tile(64, 64, 32, 3, 4, 1), 10, 20),
        Row("large", 384, 64, "int8", 130, Tile(64, 64, 32, 1, 4, 1), 10, 20),
    )
    return replace(TABLE, kernels=kernels, rows=rows)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Table | None], Path]:
    folder = tmp_path_factory.mktemp("tactics")
    made: dict[str, Path] = {}
    checkpoint = small_checkpoint(
        folder / "checkpoint",
        tokenizer=False,
        intermediate_size=192,
        num_hidden_layers=1,
        **NARROW,
    )

    def build(table: Table | None) -> Path:
        name = "heuristic" if table is None else table.digest
        if name not in made:
            if table is not None:
                table.write(folder / f"{name}.yaml")
            made[name] = llmc.build(
                checkpoint,
                folder / f"{name}.llmc",
                targets=["cpu", "sm_90"],
                max_batch=2,
                quantize="int8",
                tactics=[] if table is None else [folder / f"{name}.yaml"],
            )
        return made[name]

    return build


def plan_of(path: Path) -> Plan:
    with EngineFile.open(path) as engine:
        return Plan.from_json(engine.section("profiles/sm_90/plan.json"), what=str(path))


@pytest.mark.soak
def test_an_engine_has_the_tiles_of_its_table(built: Callable[[Table | None], Path]):
    table = measured(kernels=source_digest())
    plan = plan_of(built(table))
    assert plan.tactics == table.name
    assert plan_of(built(None)).tactics == "heuristic"
    fields = ("BLOCK_N", "BLOCK_K", "BLOCK_M", "SPLITS", "WARPS", "STAGES")
    found = {}
    activated = set()
    for program in plan.programs:
        for launch in program.kernels:
            module = plan.modules[launch.module]
            if module.kernel in ("linear_small", "linear_large"):
                c = module.constants
                tile = Tile(*(c.get(name, 1) for name in fields))
                assert (module.warps, module.stages) == (tile.warps, tile.stages)
                found[program.decode, program.tokens, c["N"], c["K"]] = tile
                activated.add((c["N"], c["ACTIVATION"]))
    tiles = [row.tile for row in table.rows]
    assert activated == {(128, None), (64, None), (384, "silu"), (512, None)}
    assert "gated" not in {module.kernel for module in plan.modules}
    mixed = max(tokens for decode, tokens, *_ in found if not decode)
    assert found[True, 1, 128, 64] == tiles[0]
    assert found[True, 2, 128, 64] == default_tile("small", 128, 64, "int8", 2, 90)
    assert found[False, 64, 384, 64] == tiles[1]
    assert found[False, 64, 64, 192] == tiles[2]
    assert found[False, mixed, 384, 64] == tiles[3]
    assert found[True, 1, 384, 64] == default_tile("small", 384, 64, "int8", 1, 90)


def test_measured_tiles_agree_with_the_oracle(built: Callable[[Table | None], Path]):
    path = built(measured(kernels=source_digest()))
    prompt = [token % VOCAB for token in some_ids(70, 3)]
    expected = quantized_logits(path, "int8", prompt, path.parent / "checkpoint")
    executor = PagedExecutor(EngineFile.open(path), "sm_90", SimulatedDevice, max_batch=None)
    try:
        found = []
        for start, stop in ((0, 69), (69, 70)):  # a large step, then a decode step of one
            rows = "all" if start == 0 else "last"
            scheduled = ScheduledSequence(0, tuple(prompt[start:stop]), start, ((0, 1),), None, len(prompt), rows=rows)
            (output,) = executor.collect(executor.submit((scheduled,)))
            found.append(output.logits)
    finally:
        executor.close()
    assert relative(found[0], expected[:69]) < 3e-2
    assert relative(found[1], expected[69:]) < 3e-2


def test_the_table_is_part_of_the_input(built: Callable[[Table | None], Path], tmp_path: Path):
    table = measured(kernels=source_digest())
    with EngineFile.open(built(table)) as one, EngineFile.open(built(None)) as none:
        assert one.manifest.recipe["tactics"] == {"sm_90": table.digest}
        assert "tactics" not in none.manifest.recipe
        assert one.manifest.recipe_digest != none.manifest.recipe_digest
    commented = tmp_path / "renamed.yaml"
    commented.write_bytes(b"# measured by hand\n" + table.to_yaml())
    again = llmc.build(
        built(table).parent / "checkpoint",
        tmp_path / "again.llmc",
        targets=["cpu", "sm_90"],
        max_batch=2,
        quantize="int8",
        tactics=[commented],
    )
    assert again.read_bytes() == built(table).read_bytes()


def test_build_says_that_a_table_is_stale_and_inspect_names_it(
    built: Callable[[Table | None], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = measured(kernels="0" * 64)
    table.write(tmp_path / "t.yaml")
    command = ["build", str(built(None).parent / "checkpoint"), "-o", str(tmp_path / "e.llmc"), "--target", "sm_90"]
    command += ["--quantize", "int8", "--max-batch", "2", "--tactics", str(tmp_path / "t.yaml")]
    assert run(command) == 0
    said = f"tiles {table.name} of sm_90 were measured with other kernels: run llmc tune again"
    assert f"warning: {said}\n" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "e.llmc")]) == 0
    assert f"profile sm_90: target sm_90, context {CONTEXT}, batch 2, tiles {table.name}\n" in capsys.readouterr().out
    assert run(["inspect", str(built(None)), "--json"]) == 0
    profiles = json.loads(capsys.readouterr().out)["profiles"]
    assert profiles["sm_90"]["tactics"] == "heuristic" and "tactics" not in profiles["cpu"]


def test_build_says_that_a_table_is_of_another_model(built: Callable[[Table | None], Path], tmp_path: Path):
    table = replace(TABLE, kernels=source_digest(), rows=(replace(ROW, n=ROW.n + 64),))
    table.write(tmp_path / "t.yaml")
    said = f"tiles {table.name} of sm_90 change nothing: no row is for a linear of this model"
    with pytest.warns(UserWarning, match=said):
        llmc.build(
            built(None).parent / "checkpoint",
            tmp_path / "e.llmc",
            targets=["sm_90"],
            max_batch=2,
            quantize="int8",
            tactics=[tmp_path / "t.yaml"],
        )


def test_a_table_is_refused_before_anything_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = small_checkpoint(tmp_path / "c", tokenizer=False)
    (tmp_path / "t.yaml").write_bytes(TABLE.to_yaml().replace(b"warps: 4", b"warps: 5"))
    command = ["build", str(checkpoint), "-o", str(tmp_path / "e.llmc"), "--tactics", str(tmp_path / "t.yaml")]
    assert run(command) == 2
    assert "t.yaml:10:5: small 128 x 256 int4, 1 token: warps 5 is not a power of two" in capsys.readouterr().err
    TABLE.write(tmp_path / "t.yaml")
    assert run(command) == 2
    assert "a table of tiles for sm_90 (NVIDIA H200)\n  found: targets cpu" in capsys.readouterr().err
    assert not (tmp_path / "e.llmc").exists()
