"""Near paths, formats of other programs by their bytes and endings, and addresses of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.paths import PICO

from llmc.runtime.files.mistaken import FOREIGN, HubId, foreign_format, mistaken_address, near_path, parse_hub_id


def test_the_nearest_existing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "checkpoints" / "pico-python").mkdir(parents=True)
    (tmp_path / "checkpoints" / "pico-python" / "config.json").touch()
    (tmp_path / "model.llmc").touch()
    monkeypatch.chdir(tmp_path)
    assert near_path(Path("modle.llmc")) == " (did you mean 'model.llmc'?)"
    assert near_path(Path("checkpoints/pico-pyton")) == " (did you mean 'checkpoints/pico-python'?)"
    assert near_path(Path("chekpoints/pico-python")) == " (did you mean 'checkpoints/pico-python'?)"
    assert near_path(Path("chekpoints/other")) == " (did you mean 'checkpoints'?)"
    assert near_path(tmp_path / "model.llm") == f" (did you mean '{tmp_path}/model.llmc'?)"
    assert near_path(Path("nothing-like-it")) == near_path(Path("/no/such/place")) == near_path(Path("")) == ""
    assert near_path(Path("model.llmc/x")) == ""  # a file is no folder


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("m.bin", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("m", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("m.GGUF", b"cut", "a GGUF file"),
        ("pytorch_model.bin", b"PK\x03\x04rest", "a PyTorch pickle, which runs code when it is read"),
        ("m.pt", b"\x80\x02}q", "a PyTorch pickle, which runs code when it is read"),
        ("m.onnx", b"\x08\x0a\x12\x07pytorch", "an ONNX model"),
        ("tf_model.h5", b"\x89HDF\r\n\x1a\n", "weights of TensorFlow"),
        ("flax_model.msgpack", b"\x81", "weights of Flax"),
    ],
)
def test_formats_of_other_programs(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    found = foreign_format(tmp_path / name)
    assert found is not None and found[0].startswith(said) and "safetensors form of the model" in found[1]


def test_what_is_none_of_them(tmp_path: Path):
    for name, content in (("m.safetensors", b"\x80\x02" + bytes(6) + b"{"), ("m.llmc", b""), ("notes.txt", b"x")):
        (tmp_path / name).write_bytes(content)
        assert foreign_format(tmp_path / name) is None
    assert foreign_format(tmp_path) is foreign_format(tmp_path / "absent.gguf") is None
    assert set(FOREIGN) >= {".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5"}


@pytest.mark.parametrize(
    "command",
    [
        ("run", "e.llmc", "--prompts", "inputs/fil.jsonl"),
        ("eval", "e.llmc", "--text", "inputs/fil.txt"),
        ("build", "absent", "-o", "e.llmc", "--recipe", "inputs/fil.yaml"),
        ("passes", "absent", "--recipe", "inputs/fil.yaml"),
        ("build", PICO, "-o", "e.llmc", "--tactics", "inputs/fil.yaml"),
        ("passes", "--from", "inputs/fil.txt"),
    ],
)
def test_every_file_that_a_flag_names(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...]
):
    monkeypatch.chdir(tmp_path)
    Path("inputs").mkdir()
    for suffix in ("jsonl", "txt", "yaml"):
        Path(f"inputs/file.{suffix}").touch()
    typed = str(command[-1])
    found = call(*command)
    assert found.code == 2
    assert f"found: No such file or directory (did you mean '{typed.replace('fil.', 'file.')}'?)\n" in found.err


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https:/huggingface.co/org/name", "org/name"),  # as a Path writes it
        ("HTTPS://HuggingFace.co/org/name/", "org/name"),
        ("http://www.huggingface.co/org/name", "org/name"),
        ("huggingface.co/org/name", "org/name"),
        ("hf.co/org/name", "org/name"),
        ("https://hf.co/org/name.2-B?library=transformers", "org/name.2-B"),
        ("https://huggingface.co/org/name/tree/main", "org/name"),
        ("https://huggingface.co/org/name/tree/v1.0", "org/name@v1.0"),
        (f"https://huggingface.co/org/name/commit/{COMMIT}", f"org/name@{COMMIT}"),
        ("https://huggingface.co/org/name/resolve/main/model.safetensors?download=true", "org/name"),
        ("https://huggingface.co/org/name/blob/main/config.json#L3", "org/name"),
        ("https://huggingface.co/org/name/discussions/4", "org/name"),
    ],
)
def test_addresses_of_the_hub_lead_to_the_id(text: str, meant: str):
    assert mistaken_address(text) == ("the address of a page on the hub", f"the id of that model: {meant}")
    assert parse_hub_id(text) is None and parse_hub_id(meant) is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://huggingface.co/datasets/org/name", "the address of a data set on the hub, not of a model"),
        ("https://huggingface.co/spaces/org/name", "the address of a space on the hub, not of a model"),
        ("https://huggingface.co/org", "the address of no model on the hub"),
        ("hf.co/", "the address of no model on the hub"),
        ("https://example.com/model.safetensors", "an address in the web"),
    ],
)
def test_addresses_of_other_things(text: str, found: str):
    address = mistaken_address(text)
    assert address is not None and address[0] == found


@pytest.mark.parametrize(
    "text", ["org/name", "hf://org/name", "checkpoints/pico", "", "/tmp/huggingface.co", "hf.company/x"]
)
def test_what_is_no_address(text: str):
    assert mistaken_address(text) is None


def test_the_hub_s_own_scheme_is_taken():
    assert parse_hub_id("hf://org/name@v1") == HubId("org/name", "v1")
