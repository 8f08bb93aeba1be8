"""The cache of engines finds an engine by what it is made of, wherever that lies, and builds it once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.commands import edit
from support.engines import ANY_RECIPE, build_cached, find_cached, never
from support.paths import PICO

import llmc
from llmc.compiler.cache import identity, remembered
from llmc.compiler.cache.find import Wish
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.weights.source import Source
from llmc.recipes.recipe import Recipe, with_flags
from llmc.runtime.errors import RecipeError, ResourceError
from llmc.runtime.files.safetensors import TensorInfo
from llmc.runtime.progress import BYTES, NO_PROGRESS


class Hashed:
    """Counts the bytes of weight files that are hashed."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self) -> Hashed:
        return self

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = BYTES) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            self.bytes += count

        yield advance


def test_an_engine_is_built_once_and_is_the_one_of_a_build(checkpoint: Path, folder: Path, tmp_path: Path):
    found = build_cached(checkpoint)
    assert os.listdir(folder) == [f"{found.key}.llmc"]
    assert (again := find_cached(checkpoint)).ready and again.path == found.path
    with pytest.warns(UserWarning):
        same = llmc.build(checkpoint, tmp_path / "same.llmc", quantize="int8")
    assert found.path.read_bytes() == same.read_bytes()


def test_the_key_is_of_contents_not_of_places(checkpoint: Path, tmp_path: Path):
    found = build_cached(checkpoint)
    assert find_cached(shutil.copytree(checkpoint, tmp_path / "copy")).ready
    assert find_cached(checkpoint / "model.safetensors").ready
    os.utime(checkpoint / "model.safetensors", (1_000_000_000, 1_000_000_000))
    (checkpoint / "notes.txt").write_text("no file of a checkpoint")
    assert find_cached(checkpoint).path == found.path


@pytest.mark.parametrize(
    "change",
    [
        lambda c: edit(c / "config.json", lambda config: config.update(rope_theta=7.0)),
        lambda c: (c / "generation_config.json").write_text("{}"),
        lambda c: (c / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        lambda c: shutil.copy(PICO / "tokenizer.json", c),
        lambda c: (c / "README.md").write_text("---\nlicense: mit\n---\n"),
    ],
)
def test_what_an_engine_is_made_of_decides(checkpoint: Path, change: Callable[[Path], object]):
    before = find_cached(checkpoint).key
    change(checkpoint)
    assert find_cached(checkpoint).key != before


def test_weights_that_are_changed_behind_a_clock_s_back_are_another_checkpoint(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    """Size and mtime are what they were; the ctime, which no program sets, tells."""
    monkeypatch.setattr(remembered, "SETTLED_NS", 0)
    weights = checkpoint / "model.safetensors"
    before, times = find_cached(checkpoint).key, os.stat(weights)
    with open(weights, "r+b") as file:
        file.seek(-2, os.SEEK_END)
        last = file.read()
        file.seek(-2, os.SEEK_END)
        file.write(bytes(byte ^ 1 for byte in last))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(weights).st_mtime_ns == times.st_mtime_ns
    assert find_cached(checkpoint).key != before


def test_weights_at_rest_are_hashed_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    weights = checkpoint / "model.safetensors"
    size = weights.stat().st_size

    def hashed() -> int:
        counter = Hashed()
        find_cached(checkpoint, progress=counter)
        return counter.bytes

    assert [hashed(), hashed()] == [size, size], "written a moment ago: a write now might leave the time as it is"
    monkeypatch.setattr(remembered, "SETTLED_NS", 0)
    assert [hashed(), hashed()] == [size, 0]
    os.utime(weights, (1_000_000_000, 1_000_000_000))
    assert [hashed(), hashed()] == [size, 0]
    os.replace(shutil.copy(weights, checkpoint / "other"), weights)
    assert [hashed(), hashed()] == [size, 0]
    for record in (checkpoint.parent / "cache" / remembered.FOLDER).iterdir():
        record.write_bytes(record.read_bytes().replace(b'"sha256":"', b'"sha256":"0'))
    assert hashed() == size, "a damaged record is none"


@pytest.mark.parametrize(
    ("recipe", "flags", "format", "free"),
    [
        (None, {}, "int8", True),
        (None, {"targets": "cpu", "max_context": 32}, "int8", True),
        (None, {"quantize": "none"}, "none", False),
        (None, {"quantize": "int4"}, "int4", False),
        ("cpu-bf16", {}, "none", False),
        ("cpu-int4", {"max_context": 32}, "int4", False),
    ],
)
def test_int8_unless_a_format_was_asked_for(checkpoint: Path, recipe: str | None, flags: Any, format: str, free: bool):
    wish = Wish.of(recipe, **flags)
    assert (find_cached(checkpoint, wish).recipe.default_format, wish.free) == (format, free)


def test_a_recipe_is_known_by_its_content(checkpoint: Path):
    assert find_cached(checkpoint).key == find_cached(checkpoint, Wish.of("cpu-int8")).key
    assert find_cached(checkpoint).key == find_cached(checkpoint, Wish.of(None, quantize="int8", targets="cpu")).key
    assert find_cached(checkpoint).key != find_cached(checkpoint, Wish.of("cpu-int8", max_context=32)).key


def test_a_quantized_checkpoint_stays_as_it_is(checkpoint: Path):
    class Codes:
        names = ("model.norm.weight", "model.norm.weight_scale")

        def info(self, name: str) -> TensorInfo:
            return TensorInfo(name, "U8" if name == "model.norm.weight" else "BF16", (2, 2), 0, 4)

    opened = replace(open_checkpoint(checkpoint), source=cast(Source, Codes()))
    assert ANY_RECIPE.for_checkpoint(opened) == Recipe()
    assert Wish.of(None, targets="h100").for_checkpoint(opened).targets == ("sm_90",)
    assert Wish.of(None, quantize="int8").for_checkpoint(opened) == with_flags(None, quantize="int8")


def test_another_llmc_builds_another_engine(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    before = find_cached(checkpoint).key
    monkeypatch.setattr(identity, "sources_digest", lambda: "0" * 64)
    changed = find_cached(checkpoint).key
    monkeypatch.setattr(identity, "FORMAT", (2, 99))
    assert len({before, changed, find_cached(checkpoint).key}) == 3


def test_llmc_s_own_sources_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("compiler/a.py", "recipes/b.yaml", "cli/c.py", "compiler/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(identity, "_PACKAGE", tmp_path)
    digest, changed = identity.sources_digest.__wrapped__, []
    for name in ("compiler/a.py", "recipes/b.yaml", "cli/c.py", "compiler/d.md"):
        before = digest()
        (tmp_path / name).write_text("x")
        changed += [name] * (digest() != before)
    assert changed == ["compiler/a.py", "recipes/b.yaml"]


@pytest.mark.parametrize("variable", ["", None])
def test_without_a_cache(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("LLMC_CACHE", variable) if variable is not None else monkeypatch.delenv("LLMC_CACHE")
    with pytest.raises(ResourceError) as caught:
        find_cached(checkpoint)
    assert str(caught.value) == (
        "cannot keep engines without a cache folder\n  found: LLMC_CACHE is empty, or no home directory\n"
        "  try: LLMC_CACHE=FOLDER; or llmc build CHECKPOINT -o OUT.llmc, and llmc run OUT.llmc"
    )


def test_a_cache_that_cannot_be_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMC_CACHE", str(tmp_path / "file"))
    found = find_cached(checkpoint)
    with pytest.raises(
        ResourceError, match=f"cannot write the cache folder {tmp_path}/file/engines\n  found: Not a dir"
    ):
        found.build(NO_PROGRESS, never)


@pytest.mark.parametrize(
    ("targets", "profile", "simulated", "said"),
    [
        ("cpu", "sm_90", False, "expected --profile to name a target of the engine that is built"),
        ("cpu", None, True, "expected the target of a GPU with --simulate"),
        ("cpu,h100", "cpu", False, ""),
        ("cpu,h100", "sm_90", True, ""),
    ],
)
def test_a_profile_that_will_not_be_there(targets: str, profile: str | None, simulated: bool, said: str):
    wish = Wish.of(None, targets=targets)
    if not said:
        return wish.refuse_other(profile, simulated=simulated)
    with pytest.raises(RecipeError) as caught:
        wish.refuse_other(profile, simulated=simulated)
    assert str(caught.value) == f"{said}\n  found: targets cpu\n  try: --target sm_90"


def test_more_sequences_than_the_engine_will_have():
    wish = Wish.of(None)
    wish.refuse_other(None, simulated=False, max_batch=8)
    with pytest.raises(RecipeError, match=r"^expected max_batch from 1 to 8"):
        wish.refuse_other(None, simulated=False, max_batch=100)
