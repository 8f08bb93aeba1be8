"""Proves that an engine of several files opens only whole: what is missing, foreign or changed is refused by name."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from support.tiny_engines import build, build_split, names, value_of

from llmc.runtime.engine_file.bind import Concat, Reshape, Stored, evaluate_weight, is_view
from llmc.runtime.engine_file.file import EngineFile, read_manifest, verify_engine
from llmc.runtime.engine_file.shards import FIRST, LATER, Seal, find, suffixes
from llmc.runtime.errors import EngineError, LlmcError, ResourceError, VerifyError

NOTHING = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return build_split(tmp_path / "m.llmc", 1)


def others(path: Path) -> list[Path]:
    return find(path, read_manifest(path).shards or ())


def refusal(path: Path, error: type[LlmcError] = EngineError) -> str:
    with pytest.raises(error) as caught:
        EngineFile.open(path)
    return str(caught.value)


def edit(path: Path, seal: Seal, change: Callable[[dict[str, Any]], object], data: bytes | None = None) -> None:
    """Change a file's header, and its bytes after it, and seal it again."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    document = json.loads(raw[8:end])
    change(document)
    new = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    new = seal.put(new.ljust(max(-(-(8 + len(new)) // 256) * 256, end) - 8))
    path.write_bytes(len(new).to_bytes(8, "little") + new + (raw[end:] if data is None else data))


def list_anew(path: Path, files: list[Path], **manifest: Any) -> None:
    """Let the first file list the headers and sizes that these files have now, under the names that follow from it."""
    shards = [{"bytes": one.stat().st_size, "sha256": LATER.stated(one.read_bytes()[8:400])} for one in files]

    def change(document: dict[str, Any]) -> None:
        text = {**json.loads(document["__metadata__"]["llmc"]), "shards": shards, **manifest}
        document["__metadata__"]["llmc"] = json.dumps(text)

    edit(path, FIRST, change)
    for one, suffix in zip(files, suffixes(read_manifest(path).shards or ()), strict=True):
        one.rename(path.with_name(path.name.removesuffix(".llmc") + suffix))


def test_every_file_is_a_safetensors_file(path: Path):
    found = {}
    for number, one in enumerate((path, *others(path)), 1):
        with safetensors.safe_open(one, "np") as file:
            mine = [name for name in file.keys() if not name.startswith("__llmc__/")]  # noqa: SIM118
            found.update({name: number for name in mine})
            if "b" in mine:
                assert (file.get_tensor("b") == 1).all() and file.get_tensor("b").shape == (500, 140)
            if number > 1:
                says = file.metadata()
                assert says["llmc.shard"] == f"{number} of 3"
                assert says["llmc.engine"] == read_manifest(path).content_digest
    assert found == {"scale": 1, "a": 2, "c": 2, "b": 3}


def test_tensors_are_those_of_the_engine_in_one_file(path: Path, tmp_path: Path):
    whole = build_split(tmp_path / "whole.llmc", 1, None)
    with EngineFile.open(path, verify="full") as split, EngineFile.open(whole) as one:
        assert list(split.tensors) == list(one.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(split.tensor(name), one.tensor(name))
            with pytest.raises(ValueError, match="read-only"):
                split.tensor(name)[...] = 0
        split.drop_pages()
        kept = split.tensor("b")
        assert split.manifest.content_digest == one.manifest.content_digest
    assert int(kept.max()) == 1
    with pytest.raises(EngineError, match="the engine was closed"):
        split.tensor("b")
    split.demand_unchanged()


def test_a_missing_file_is_named_with_its_size(path: Path, tmp_path: Path):
    second, third = others(path)
    alone = tmp_path / "elsewhere" / "m.llmc"
    alone.parent.mkdir()
    shutil.copyfile(path, alone)
    sizes = second.stat().st_size, third.stat().st_size
    third.unlink()
    assert refusal(path) == (
        f"cannot open {path} without 1 of its 3 files\n  found: no {third.name} of {sizes[1]} bytes\n"
        "  try: copy all files of the engine into one folder"
    )
    assert f"no {second.name} of {sizes[0]} bytes, {third.name} of {sizes[1]} bytes\n" in refusal(alone)
    with pytest.raises(EngineError, match="without 1 of its 3 files"):
        verify_engine(path)


def test_hundreds_of_missing_files_are_counted(path: Path):
    with pytest.raises(EngineError, match=r"without 200 of its 201 files\n  found: no .* bytes and 192 more\n"):
        find(path, (read_manifest(path).shards or ()) * 100)


RENAMES: dict[str, Callable[[Path, Path], object]] = {
    "all": lambda one, path: one.rename(one.with_name(one.name.replace("m", "new", 1))),
    "the first": lambda one, path: one.rename(one.with_name("new.llmc")) if one == path else None,
    "the others": lambda one, path: None if one == path else one.rename(one.with_name("x" + one.name)),
    "the first, without its ending": lambda one, path: one.rename(one.with_name("new")) if one == path else None,
}


@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_files_are_found_after_a_rename(rename: Callable[[Path, Path], object], path: Path, tmp_path: Path):
    for one in (path, *others(path)):
        rename(one, path)
    (first,) = (name for name in names(tmp_path) if name in ("m.llmc", "new.llmc", "new"))
    assert value_of(tmp_path / first) == 1


def test_links(path: Path, tmp_path: Path):
    away = tmp_path / "away"
    away.mkdir()
    (away / "linked.llmc").symlink_to(path)
    assert value_of(away / "linked.llmc") == 1
    snapshot = tmp_path / "snapshot"  # as in a hub's cache: every file a link to a blob
    snapshot.mkdir()
    for index, one in enumerate((path, *others(path))):
        (snapshot / one.name).symlink_to(one.rename(tmp_path / f"blob{index}"))
    assert value_of(snapshot / "m.llmc") == 1


def test_its_own_files_come_before_copies_with_another_name(path: Path, tmp_path: Path):
    for one in others(path):
        shutil.copyfile(one, one.with_name("a" + one.name))
    with EngineFile.open(path) as engine:
        assert [part.path for part in engine.parts[1:]] == others(path)
        assert all(one.name.startswith("m-") for one in others(path))


def test_a_file_of_another_engine_or_place_is_refused(path: Path, tmp_path: Path):
    second, third = others(path)
    other = build_split(tmp_path / "other.llmc", 2)
    mine, foreign = (read_manifest(one).content_digest for one in (path, other))
    kept = second.read_bytes()
    shutil.copyfile(others(other)[0], second)
    assert refusal(path) == (
        f"expected {second} as file 2 of 3 of engine {mine}\n  found: file 2 of 3 of engine {foreign}\n"
        "  try: copy all files of the engine into one folder again"
    )
    with pytest.raises(EngineError, match="as file 2 of 3"):
        verify_engine(path)
    second.write_bytes(third.read_bytes())
    assert f"found: file 3 of 3 of engine {mine}\n" in refusal(path)
    second.write_bytes(kept)
    edit(second, LATER, lambda document: document.update(extra={**NOTHING, "data_offsets": [120_200] * 2}))
    assert "\n  found: another header, as of the same engine split at another size\n" in refusal(path)


def test_what_is_no_further_file_is_refused(path: Path, tmp_path: Path):
    second, _ = others(path)
    whole = build(tmp_path / "whole.llmc", 1)
    shutil.copyfile(whole, second)
    assert f"expected {second} as a further file of an engine\n  found: a header that begins otherwise" in refusal(path)
    second.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "git lfs pull" in refusal(path)
    second.unlink()
    second.mkdir()
    assert f"expected a regular file at {second}\n  found: a folder" in refusal(path)


@pytest.mark.parametrize("command", [EngineFile.open, verify_engine])
@pytest.mark.parametrize("there", [True, False])
def test_a_further_file_alone_is_refused_with_the_first_one_s_name(path: Path, command: Any, there: bool):
    second, _ = others(path)
    if not there:
        path.rename(path.with_name("m"))
    first = path if there else path.with_name("m")
    with pytest.raises(
        EngineError, match="as an engine of llmc\n  found: a file of an engine that is not its first"
    ) as e:
        command(second)
    assert str(e.value).endswith(f"\n  try: the first one, {first}")
    strange = second.rename(path.with_name("strange.llmc"))
    assert refusal(strange).endswith("\n  try: the first one, which has the manifest")


def test_a_folder_of_one_split_engine_is_a_folder_of_one(path: Path, tmp_path: Path):
    assert f"found: a folder with 1 of them\n  try: the file, such as {path}" in refusal(tmp_path)


def test_any_changed_byte_of_a_further_file_is_found(path: Path, tmp_path: Path):
    second, _ = others(path)
    data = second.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with second.open("r+b", buffering=0) as file:
        for at in (*range(0, start, 7), *range(start, len(data), 4001), len(data) - 1):
            file.seek(at)
            file.write(bytes([data[at] ^ (1 << at % 8)]))
            with pytest.raises(LlmcError) as caught:
                verify_engine(path)
            assert isinstance(caught.value, VerifyError) and second.name in str(caught.value), at
            file.seek(at)
            file.write(data[at : at + 1])
    assert value_of(path) == 1


def test_damage_is_named_by_file(path: Path):
    second, third = others(path)
    with EngineFile.open(path) as engine:
        places = {one: engine.tensors[name].offset for one, name in ((second, "c"), (third, "b"))}
    for one, at in places.items():
        data = bytearray(one.read_bytes())
        data[at] ^= 1
        one.write_bytes(data)
    with pytest.raises(VerifyError) as caught:
        verify_engine(path)
    for one, name, nbytes in ((second, "c", 200), (third, "b", 70_000)):
        at = places[one]
        assert f"tensor {name!r} chunk 1 of 1 (bytes {at} to {at + nbytes} of {one.name})" in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 8, 400, 5000, -1])
def test_any_truncation_of_a_further_file_is_refused(path: Path, length: int):
    second, _ = others(path)
    whole = second.stat().st_size
    os.truncate(second, length % whole)
    assert str(second) in refusal(path)
    with pytest.raises(VerifyError):
        verify_engine(path)
    os.truncate(second, whole + 1)
    assert str(second) in refusal(path)


def test_a_further_file_of_another_size_than_listed_is_refused(path: Path):
    files = others(path)
    sizes = [{"bytes": one.stat().st_size + 256, "sha256": LATER.stated(one.read_bytes()[8:400])} for one in files]
    list_anew(path, files, shards=sizes)
    second = others(path)[0]
    size = second.stat().st_size
    assert f"expected {second} to have {size + 256} bytes\n  found: {size} bytes" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scale": {**NOTHING, "dtype": "F32"}},
            "expected 'scale' in one file of an engine\n  found: a second one in ",
        ),
        ({"extra": NOTHING}, "expected 1 chunk digests for tensor 'extra' of "),
        ({"__llmc__/graph": NOTHING}, "expected '__llmc__/graph' in one file of an engine"),
        ({"__llmc__/other": NOTHING}, "as a U8 section that the manifest lists"),
    ],
)
def test_extra_tensors_of_a_further_file_are_refused(path: Path, change: dict[str, Any], message: str):
    second, third = others(path)

    def add(document: dict[str, Any]) -> None:
        rest = {name: document.pop(name) for name in list(document) if name != "__metadata__"}
        document.update({**change, **rest})

    edit(second, LATER, add)
    list_anew(path, [second, third])
    assert message in refusal(path)


def test_a_section_belongs_into_the_first_file(path: Path):
    second, third = others(path)
    edit(second, LATER, lambda document: document.update({"__llmc__/late": {**NOTHING, "data_offsets": [120200] * 2}}))
    before = json.loads(read_manifest(path).to_json())["sections"]
    list_anew(path, [second, third], sections={**before, "late": "0" * 64})
    assert f"expected '__llmc__/late', which the manifest lists, in {path}" in refusal(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"required_features": []}, "expected no files in "),
        ({"shards": []}, "manifest.shards\n  found: 0"),
        ({"shards": [{"bytes": 1, "sha256": "0" * 64}] * 256}, "expected 1 to 255 files in "),
        ({"shards": [{"bytes": 1, "sha256": "x"}]}, "expected 64 lower-case hex digits in "),
        ({"shards": [{"bytes": -1, "sha256": "0" * 64}]}, "expected a non-negative integer below 2^63 in "),
        ({"shards": [{"bytes": 1, "sha256": "0" * 64, "name": "/x"}]}, "expected only known keys in "),
        ({"shards": {"../x": 1}}, "expected a list in "),
        ({"shards": [{"bytes": 1, "sha256": "0" * 64}]}, "without 1 of its 2 files"),
        ({"required_features": ["shards", "holograms"]}, "found: ['holograms']"),
    ],
)
def test_manifests_that_are_refused(path: Path, change: dict[str, Any], message: str):
    def put(document: dict[str, Any]) -> None:
        text = {**json.loads(document["__metadata__"]["llmc"]), **change}
        document["__metadata__"]["llmc"] = json.dumps(text)

    edit(path, FIRST, put)
    assert message in refusal(path)


def test_readers_without_the_feature_refuse(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llmc.runtime.engine_file.manifest.FEATURES", frozenset({"length_ropes"}))
    assert "expected features that this llmc supports in " in refusal(path)


def test_tensors_of_two_files_are_not_adjacent(path: Path):
    with EngineFile.open(path) as engine:
        a, c, b = (Stored(n, i.dtype, i.shape) for n, i in engine.tensors.items() if n != "scale")
        rows = Reshape(a, (60_000,))
        together, apart = Concat((a, a), 0), Concat((b, b), 0)
        infos = dict(engine.tensors)
        assert infos["a"].offset + infos["a"].nbytes == infos["c"].offset
        flat = Concat((Stored("a", "BF16", (600, 100)),), 0)
        assert is_view(flat, infos) and not is_view(together, infos) and not is_view(apart, infos)
        # offsets that follow each other, of two files
        infos["x"], infos["y"] = (
            type(infos["a"])("x", "U8", (1000,), 512, 1000, 1),
            type(infos["a"])("y", "U8", (1000,), 1512, 1000, 2),
        )
        assert not is_view(Concat((Stored("x", "U8", (1000,)), Stored("y", "U8", (1000,))), 0), infos)
        joined = evaluate_weight(Concat((rows, c), 0), engine.tensor, initializer="w")
        assert np.shares_memory(joined, engine.tensor("a")) and joined.shape == (60_100,)


CHANGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "a byte": (lambda one: one.write_bytes(one.read_bytes()[:-1] + b"\xff"), True),
    "longer": (lambda one: os.truncate(one, one.stat().st_size + 1), True),
    "touched": (os.utime, False),
    "removed": (os.unlink, False),
    "renamed over": (lambda one: os.replace(shutil.copyfile(one, one.with_name("new")), one), False),
}


@pytest.mark.parametrize(("change", "refused"), CHANGES.values(), ids=CHANGES)
def test_all_files_are_watched(path: Path, change: Callable[[Path], object], refused: bool):
    with EngineFile.open(path) as engine:
        third = others(path)[1]
        change(third)
        for _ in range(2):
            if refused:
                with pytest.raises(EngineError, match=f"cannot go on with {third}: the file was changed"):
                    engine.demand_unchanged()
            else:
                engine.demand_unchanged()
                assert int(engine.tensor("b")[0, 0]) == 1


def test_descriptors_are_closed_after_a_refusal_and_after_use(path: Path):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    with EngineFile.open(path):
        assert count() == before + 2 * 3  # Python's maps keep a descriptor of their own
    second, _ = others(path)
    os.truncate(second, 600)
    refusal(path)
    assert count() <= before + 3


def test_a_process_that_may_not_map_or_open_more(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch, pytest.raises(ResourceError, match=r"cannot map \S+m.llmc of "):
        patch.setattr("llmc.runtime.engine_file.shards.mmap.mmap", full)
        EngineFile.open(path)
