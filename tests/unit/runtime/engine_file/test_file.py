"""Proves that engines open as safetensors files, that damage anywhere is found, and that refusals say what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from llmc.compiler.engine.writer import EngineWriter
from llmc.runtime.engine_file.bind import Stored
from llmc.runtime.engine_file.file import EngineFile, read_unchecked, verify_engine
from llmc.runtime.engine_file.layout import content_digest
from llmc.runtime.engine_file.manifest import CheckpointFacts, LayerCache, Lineage, Manifest, ModelFacts, Profile
from llmc.runtime.engine_file.shards import FIRST
from llmc.runtime.errors import EngineError, LlmcError, VerifyError
from llmc.runtime.files.safetensors import read_header

ARRAYS = {
    "a.weight": np.arange(10, dtype=np.uint8).reshape(2, 5),
    "b.weight": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "a.weight_scale": np.arange(4, dtype=np.uint16).reshape(2, 2),
    "norm.weight": np.linspace(0, 1, 3, dtype=np.float32),
    "empty.weight": np.zeros((0, 7), np.float32),
}
GROUPS = (
    [Stored("a.weight", "U8", (2, 5)), Stored("b.weight", "U8", (2, 3))],
    [Stored("a.weight_scale", "BF16", (2, 2))],
    [Stored("norm.weight", "F32", (3,))],
    [Stored("empty.weight", "F32", (0, 7))],
)
SECTIONS = {"profiles/cpu/graph.onnx": b"graph", "tokenizer.json": b"{}", "measured.json": b'{"speed":1}'}
MANIFEST = Manifest(
    model=ModelFacts(
        "LlamaForCausalLM", "llama", 8, 4, 2, (LayerCache(1, 2),), 64, 40, "bfloat16", True, 1, (2, 3), {"top_k": 5}
    ),
    formats={"a": "int8"},
    profiles={"cpu": Profile("cpu", "profiles/cpu/graph.onnx", {"memory": 1}, {"w": {"op": "tensor"}}, 64, 8, 1e-3)},
    lineage={name: Lineage((name,), "copy") for name in ARRAYS},
    unused={"rotary_emb.inv_freq": "computed"},
    recipe={"version": 1},
    recipe_digest="0" * 64,
    checkpoint=CheckpointFacts({"model.safetensors": "1" * 64}, "abc", ("odd_key",)),
    tools={"llmc": "0.1.0"},
)


def make(path: Path, *, manifest: Manifest = MANIFEST, sections: dict[str, bytes] = SECTIONS, reserve: int = 0) -> Path:
    with EngineWriter(path, GROUPS, reserve_header=reserve or None) as writer:
        for name, array in ARRAYS.items():
            writer.write(name, 0, array)
        for name, data in sections.items():
            writer.section(name, data)
        return writer.commit(manifest)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small engine, with as little blank space in its header as possible."""
    path = tmp_path_factory.mktemp("sample") / "sample.llmc"
    make(path)
    used = len(path.read_bytes()[8 : read_header(path, error=EngineError).data_start].rstrip())
    return make(path, reserve=used).read_bytes()


def forge(sample: bytes, change: dict[str, Any] | None = None, *, in_order: bool = True, **tensors: Any) -> bytes:
    """The sample with manifest keys or tensor entries replaced, and an honest header digest over the result."""
    end = 8 + int.from_bytes(sample[:8], "little")
    document = json.loads(sample[8:end])
    manifest = {**json.loads(document["__metadata__"]["llmc"]), **(change or {})}
    document["__metadata__"]["llmc"] = json.dumps(manifest)
    document.update({name: {**document.get(name, {}), **entry} for name, entry in tensors.items()})
    if in_order:
        document = dict(sorted(document.items(), key=lambda item: item[1].get("data_offsets", [-1])))
    raw = json.dumps(document, separators=(",", ":")).encode()
    raw = raw.ljust(-(-len(raw) // 256) * 256 + 248)
    return len(raw).to_bytes(8, "little") + FIRST.put(raw) + sample[end:]


def refusal(path: Path, raw: bytes, error: type[LlmcError] = EngineError) -> str:
    path.write_bytes(raw)
    with pytest.raises(error) as caught:
        EngineFile.open(path)
    return str(caught.value)


def test_round_trip(tmp_path: Path) -> None:
    path = make(tmp_path / "m.llmc")
    with EngineFile.open(path, verify="full") as engine:
        for name, array in ARRAYS.items():
            view = engine.tensor(name)
            assert view.dtype == array.dtype
            np.testing.assert_array_equal(view, array)
            with pytest.raises(ValueError):
                view[...] = 0
        assert {name: engine.section(name) for name in engine.sections} == SECTIONS
        assert list(engine.tensors) == list(ARRAYS)
        stated = replace(engine.manifest, sections={}, tensors={}, content_digest="")
        assert stated == MANIFEST
        kept = engine.tensor("norm.weight")
    np.testing.assert_array_equal(kept, ARRAYS["norm.weight"])
    with pytest.raises(EngineError, match="closed"):
        engine.tensor("norm.weight")


def test_the_safetensors_library_reads_it(tmp_path: Path) -> None:
    path = make(tmp_path / "m.llmc")
    with safetensors.safe_open(path, "np") as file:
        names = [name for name in file.keys() if not name.startswith("__llmc__/")]  # noqa: SIM118
        assert sorted(names) == sorted(ARRAYS)
        np.testing.assert_array_equal(file.get_tensor("a.weight"), ARRAYS["a.weight"])
        assert file.get_tensor("__llmc__/tokenizer.json").tobytes() == b"{}"
        assert json.loads(file.metadata()["llmc"])["model"]["family"] == "llama"


def test_groups_are_aligned_and_dense(tmp_path: Path) -> None:
    with EngineFile.open(make(tmp_path / "m.llmc")) as engine:
        infos = engine.tensors
        for first in ("a.weight", "a.weight_scale", "norm.weight"):
            assert infos[first].offset % 256 == 0
            assert engine.tensor(first).ctypes.data % 256 == 0
        assert infos["b.weight"].offset == infos["a.weight"].offset + 10


def test_equal_input_gives_equal_bytes_and_measured_values_do_not_count(tmp_path: Path) -> None:
    one, two = make(tmp_path / "1.llmc"), make(tmp_path / "2.llmc")
    assert one.read_bytes() == two.read_bytes()
    other = make(tmp_path / "3.llmc", sections={**SECTIONS, "measured.json": b"{}"}, reserve=50_000)
    changed = make(tmp_path / "4.llmc", sections={**SECTIONS, "tokenizer.json": b"[]"})
    digests = [EngineFile.open(path, verify="full").manifest.content_digest for path in (one, other, changed)]
    assert digests[0] == digests[1] != digests[2]


def test_any_changed_byte_is_found(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.llmc"
    path.write_bytes(sample)
    verify_engine(path).close()
    start = 8 + int.from_bytes(sample[:8], "little")
    with path.open("r+b", buffering=0) as file:
        for at, byte in enumerate(sample):
            file.seek(at)
            file.write(bytes([byte ^ (1 << at % 8)]))
            with pytest.raises(EngineError if at < start else VerifyError) as caught:
                EngineFile.open(path).check_all()
            if at >= start:
                assert any(word in str(caught.value) for word in ("tensor", "section", "padding"))
            file.seek(at)
            file.write(bytes([byte]))
    verify_engine(path).close()


def test_any_truncation_is_refused(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.llmc"
    path.write_bytes(sample)
    for length in reversed(range(len(sample))):
        with path.open("r+b") as file:
            file.truncate(length)
        with pytest.raises(EngineError, match=f"{length} bytes"):
            EngineFile.open(path)
    assert "1 more than the tensors cover" in refusal(path, sample + b"\0")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_header_lengths(sample: bytes, tmp_path: Path, length: int) -> None:
    refusal(tmp_path / "m.llmc", length.to_bytes(8, "little") + sample[8:])


def test_damage_is_named(tmp_path: Path) -> None:
    path = make(tmp_path / "m.llmc")
    infos = read_header(path, error=EngineError).tensors
    padding = next(name for name in infos if name.startswith("__llmc__/pad/"))
    raw = bytearray(path.read_bytes())
    for name in ("b.weight", padding, "__llmc__/tokenizer.json"):
        raw[infos[name].offset] ^= 1
    path.write_bytes(raw)
    engine = EngineFile.open(path)
    with pytest.raises(VerifyError) as caught:
        engine.check_all()
    assert "tensor 'b.weight' chunk 1 of 1 (bytes " in str(caught.value)
    assert f"padding '{padding}'" in str(caught.value)
    assert "section 'tokenizer.json'" in str(caught.value)
    with pytest.raises(EngineError, match=r"expected section 'tokenizer.json' of \S+ to match its digest"):
        engine.section("tokenizer.json")
    with pytest.raises(EngineError, match=r"b\.weight"):
        EngineFile.open(path, verify="full")
    with pytest.raises(VerifyError, match=r"b\.weight"):
        verify_engine(path)


def test_chunks_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "big.llmc"
    chunk, size = 16 << 20, (32 << 20) + 5
    with EngineWriter(path, [[Stored("w", "U8", (size,))]]) as writer:
        for start in range(0, size, 10_000_000):
            writer.write("w", start, np.full(min(10_000_000, size - start), start // 10_000_000, np.uint8))
        writer.section("profiles/cpu/graph.onnx", b"")
        writer.commit(MANIFEST)
    engine = verify_engine(path)
    assert len(engine.manifest.tensors["w"]) == 3
    at = engine.tensors["w"].offset + chunk
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff")
    with pytest.raises(VerifyError, match=f"tensor 'w' chunk 2 of 3 \\(bytes {at} to {at + chunk}\\)"):
        engine.check_all()


def test_damage_of_the_header_fails_verify(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.llmc"
    for at in (0, 9, 60, 200):
        path.write_bytes(sample[:at] + bytes([sample[at] ^ 1]) + sample[at + 1 :])
        with pytest.raises(VerifyError):
            verify_engine(path)
    with pytest.raises(EngineError, match="No such file"):
        verify_engine(tmp_path / "absent.llmc")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"format": "3.0", "tools": {"llmc": "3.1"}, "new": 1}, ["found: format 3.0", "needs llmc >= 3.1"]),
        ({"format": "1.0"}, ["\n  found: format 1.0\n  try: build the engine again with this llmc"]),
        ({"format": "1"}, ["a version such as '2.0'"]),
        ({"format": "2.1", "required_features": ["holograms"]}, ["['holograms']", "needs llmc >= 0.1.0"]),
        ({"profile": {}}, ["'profile' (did you mean 'profiles'?)"]),
        ({"model": {}}, ["expected the key 'architecture' in ", "manifest.model\n"]),
        ({"tools": {"llmc": 1}}, ["expected a string in ", "found: 1"]),
        ({"unused": []}, ["expected an object in ", "manifest.unused\n"]),
        (
            {"sections": {}},
            ["expected '__llmc__/profiles/cpu/graph.onnx' of ", "as a U8 section that the manifest lists"],
        ),
        ({"tensors": {}}, ["expected 1 chunk digests for tensor 'a.weight' of ", "found: 0"]),
        ({"content_digest": "x"}, ["expected 64 lower-case hex digits in ", "manifest.content_digest\n"]),
        (
            {"checkpoint": {"files": {"x": "../y"}}},
            ["expected 64 lower-case hex digits in ", "manifest.checkpoint.files.x\n"],
        ),
    ],
)
def test_manifests_that_are_refused(
    sample: bytes, tmp_path: Path, change: dict[str, object], messages: list[str]
) -> None:
    path = tmp_path / "m.llmc"
    text = refusal(path, forge(sample, change))
    assert all(message in text for message in messages)
    assert read_unchecked(path)["manifest"]["model"] == change.get("model", json.loads(MANIFEST.to_json())["model"])


def test_a_newer_minor_version_may_say_more(sample: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.llmc"
    end = 8 + int.from_bytes(sample[:8], "little")
    before = json.loads(json.loads(sample[8:end])["__metadata__"]["llmc"])
    with EngineFile.open(make(path)) as engine:
        newer = json.dumps({**before, "format": "2.7", "colour": "blue"})
        digest = content_digest(newer, engine.tensors)
    assert digest != before["content_digest"]
    path.write_bytes(forge(sample, {"format": "2.7", "colour": "blue", "content_digest": digest}))
    with verify_engine(path) as engine:
        assert engine.manifest.model == MANIFEST.model
    path.write_bytes(forge(sample, {"format": "2.7", "colour": "red", "content_digest": digest}))
    with pytest.raises(VerifyError, match=r"expected the manifest of .* to match its content digest"):
        verify_engine(path)


def listed(sample: bytes, key: str, **more: object) -> dict[str, object]:
    end = 8 + int.from_bytes(sample[:8], "little")
    return {key: {**json.loads(json.loads(sample[8:end])["__metadata__"]["llmc"])[key], **more}}


NOTHING = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
SHIFTED = {
    "a.weight": {"shape": [9], "data_offsets": [0, 9]},
    "b.weight": {"shape": [7], "data_offsets": [9, 16]},
    "norm.bias": {"dtype": "F16", "shape": [0], "data_offsets": [9, 9]},
}


@pytest.mark.parametrize(
    ("key", "listing", "tensors", "message"),
    [
        ("tensors", {"norm.bias": ["0" * 64]}, SHIFTED, "expected aligned F16 for tensor 'norm.bias' of "),
        ("tensors", {"lost": ["0" * 64]}, {}, "'lost', which the manifest lists"),
        ("sections", {"lost": "0" * 64}, {}, "'__llmc__/lost', which the manifest lists"),
        ("sections", {"a/../b": "0" * 64}, {}, "expected plain names in "),
        ("sections", {}, {"a/b": NOTHING}, "tensor names of A-Z"),
        ("sections", {}, {"a..b": NOTHING}, "tensor names of A-Z"),
        ("sections", {}, {"extra": NOTHING}, "expected 1 chunk digests for tensor 'extra' of "),
        ("sections", {}, {"c64": {**NOTHING, "dtype": "C64"}}, "expected a dtype of engines for tensor 'c64' of "),
        ("sections", {}, {"__llmc__/pad/9": NOTHING}, "as U8 padding of fewer than 256 bytes"),
        ("sections", {}, {"__llmc__/lost": {**NOTHING, "dtype": "U8"}}, "as a U8 section that the manifest lists\n"),
        ("sections", {}, {"b.weight": {"shape": [2, 4], "data_offsets": [8, 16]}}, "'b.weight' begins"),
    ],
)
def test_layouts_that_are_refused(
    sample: bytes, tmp_path: Path, key: str, listing: dict[str, object], tensors: dict[str, Any], message: str
) -> None:
    assert message in refusal(tmp_path / "m.llmc", forge(sample, listed(sample, key, **listing), **tensors))


def test_entries_follow_the_order_of_the_file(sample: bytes, tmp_path: Path) -> None:
    text = refusal(tmp_path / "m.llmc", forge(sample, in_order=False, **{"b.bias": NOTHING}))
    assert "to be listed in the order of the file\n  found: '__llmc__/" in text and "before 'b.bias' at byte" in text


def test_other_files(tmp_path: Path) -> None:
    safetensors_file = tmp_path / "model.safetensors"
    safetensors_file.write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(EngineError, match="as an engine of llmc"):
        EngineFile.open(safetensors_file)
    assert read_unchecked(safetensors_file) == {"bytes": 10, "metadata": {}, "manifest": None, "tensors": {}}
    assert "git lfs pull" in refusal(tmp_path / "m.llmc", b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(EngineError, match="a folder with 1 of them"):
        EngineFile.open(tmp_path)


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path) -> None:
    engine = EngineFile.open(make(tmp_path / "m.llmc"))
    with pytest.raises(EngineError, match=r"did you mean 'a\.weight'"):
        engine.tensor("a.weigth")
    with pytest.raises(EngineError, match=r"did you mean 'tokenizer\.json'"):
        engine.section("tokenizer.jso")
    with pytest.raises(EngineError, match="no such tensor"):
        engine.tensor("__llmc__/tokenizer.json")
