"""What is given in place of an engine, to every command that takes one: what it is, and the command that helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO

import llmc
from llmc.runtime.errors import EngineError

Call = Callable[..., Outcome]
COMMANDS = {
    "bench": ("bench", "{}"),
    "eval": ("eval", "{}", "--text", "text"),
    "verify": ("verify", "{}"),
    "verify a profile": ("verify", "{}", "--profile", "h100"),
    "tune": ("tune", "{}"),
    "doctor": ("doctor", "{}"),
    "doctor elsewhere": ("doctor", "{}", "--for", "h100"),
    "launches": ("inspect", "{}", "--launches"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("text")


def refusal(call: Call, command: str, given: object) -> str:
    found = call(*(str(given) if one == "{}" else one for one in COMMANDS[command]))
    assert (found.code, found.out) == (3, ""), found.err
    return found.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_folder_is_to_be_built_first(call: Call, command: str):
    shutil.copytree(PICO, "my pico")
    assert refusal(call, command, "my pico") == (
        "llmc: expected an engine at my pico\n  found: a checkpoint folder\n"
        "  try: llmc build 'my pico' -o 'my pico.llmc' first, then 'my pico.llmc' here\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("given", "name"), [("org/Some-7B", "Some-7B"), ("org/Some-7B@v1", "Some-7B")])
def test_a_hub_id_is_to_be_built_first(call: Call, command: str, given: str, name: str):
    assert refusal(call, command, given) == (
        f"llmc: expected an engine, not {given}\n  found: no such file; it may be an id of the hub\n"
        f"  try: llmc build {given} -o {name}.llmc first, then {name}.llmc here\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_of_the_hub(call: Call, command: str):
    assert (
        "\n  found: the address of a page on the hub\n  try: the id of that model: org/name, then llmc build"
        in refusal(call, command, "https://huggingface.co/org/name/tree/main")
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_name_of_a_model_alone(call: Call, command: str):
    """Such as gpt2: no hub id without its organization, and no misspelt file."""
    assert refusal(call, command, "gpt2") == (
        "llmc: cannot open gpt2\n  found: No such file or directory\n"
        "  try: a file that llmc build wrote; a checkpoint for llmc run: a folder or org/name\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_typing_error_in_the_path(call: Call, command: str):
    Path("build").mkdir()
    Path("build/model.llmc").write_text("x")
    for typed in ("build/modl.llmc", "bild/model.llmc", "build/model"):
        found = f"llmc: cannot open {typed}\n  found: No such file or directory (did you mean 'build/model.llmc'?)\n"
        assert refusal(call, command, typed) == found


@pytest.mark.parametrize(
    ("name", "content", "found", "fix"),
    [
        ("m.gguf", b"GGUF", "a GGUF file", "the safetensors form of the model, from the repository that it was"),
        ("m.bin", b"PK\x03\x04", "a PyTorch pickle, which runs code", "the safetensors form of the model, or convert"),
        ("m.onnx", b"\x08\x0a", "an ONNX model", "the safetensors form of the model"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_weights_of_other_programs(call: Call, command: str, name: str, content: bytes, found: str, fix: str):
    Path(name).write_bytes(content)
    said = refusal(call, command, name)
    assert said.startswith(f"llmc: expected an engine at {name}\n  found: {found}")
    assert f"\n  try: {fix}" in said and said.endswith(", then llmc build\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_a_checkpoint(call: Call, command: str):
    shutil.copytree(PICO, "pico")
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        assert refusal(call, command, f"pico/{name}") == (
            f"llmc: expected an engine at pico/{name}\n  found: a file of a checkpoint\n"
            "  try: llmc build pico -o pico.llmc first, then pico.llmc here\n"
        )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder(call: Call, command: str, pico_engine: PicoEngine):
    Path("empty").mkdir()
    assert "found: an empty folder\n  try: a file that llmc build wrote" in refusal(call, command, "empty")
    Path("notes").mkdir()
    Path("notes/x.txt").write_text("x")
    assert "found: a folder\n  try: a file that llmc build wrote, such as model.llmc" in refusal(call, command, "notes")
    Path("gguf").mkdir()
    Path("gguf/m.gguf").write_bytes(b"GGUF")
    assert "found: a folder with a GGUF file\n  try: the safetensors form" in refusal(call, command, "gguf")
    Path("gguf/adapter_config.json").write_text("{}")
    assert "an adapter (LoRA)\n  try: merge it into its base model, then llmc build" in refusal(call, command, "gguf")
    shutil.copy(pico_engine("int8"), "empty/a.llmc")
    assert "found: a folder with 1 of them\n  try: the file, such as empty/a.llmc" in refusal(call, command, "empty")


def test_what_may_be_an_engine_is_opened(call: Call, pico_engine: PicoEngine):
    """By its bytes whatever its name, and by its name whatever its bytes."""
    shutil.copy(pico_engine("int8"), "engine.bin")
    assert call("inspect", "engine.bin").out.startswith("engine engine.bin: ")
    assert call("verify", "engine.bin").code == 0
    Path("cut.llmc").write_bytes(b"GGUF")
    assert "expected cut.llmc as a safetensors file" in call("verify", "cut.llmc").err


def test_the_library_says_the_same():
    with pytest.raises(EngineError, match=rf"llmc build {PICO} -o pico-python.llmc first"):
        llmc.load(PICO)
