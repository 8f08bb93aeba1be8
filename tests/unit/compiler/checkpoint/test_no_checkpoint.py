"""What is given in place of a checkpoint: adapters, files of other programs, engines, empty folders, addresses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import refusal, write_sharded, write_single
from support.commands import Outcome
from support.engines import PicoEngine
from support.paths import PICO

from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.runtime.errors import CheckpointError, LlmcError, ResourceError, Unsupported

Call = Callable[..., Outcome]
ADAPTER = {"base_model_name_or_path": "meta-llama/Llama-3.2-1B", "peft_type": "LORA", "r": 8}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder(*files: str) -> Path:
    """A folder `c` with these files, each of one byte."""
    path = Path("c").absolute()
    path.mkdir()
    for name in files:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("x")
    return path


def test_an_adapter_is_to_be_merged_into_its_base_model():
    path = folder("adapter_model.safetensors", "README.md")
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER))
    said = refusal(path, Unsupported)
    assert said == (
        f"expected config.json and safetensors weights in folder {path}\n  found: an adapter (LoRA), not a model\n"
        "  try: merge it into its base model, and build the result: PeftModel.from_pretrained("
        f"AutoModelForCausalLM.from_pretrained('meta-llama/Llama-3.2-1B'), '{path}')"
        ".merge_and_unload().save_pretrained('merged')"
    )


@pytest.mark.parametrize(
    "config", ["", "[]", "{}", '{"base_model_name_or_path": 3}', '{"base_model_name_or_path": "\\u0007"}']
)
def test_an_adapter_that_does_not_say_its_base_model(config: str):
    path = folder("adapter_config.json")
    (path / "adapter_config.json").write_text(config)
    assert "AutoModelForCausalLM.from_pretrained(BASE_MODEL)" in refusal(path, Unsupported)


@pytest.mark.parametrize(
    ("files", "kind", "found", "fix"),
    [
        ((), CheckpointError, "an empty folder", "hf download ORG/NAME --local-dir {path}"),
        (
            ("a.Q4_K_M.gguf", "b.gguf", "README.md"),
            Unsupported,
            "only GGUF files: a.Q4_K_M.gguf, b.gguf",
            "the safetensors form of the model, from the repository that they were converted from",
        ),
        (("pytorch_model.bin",), Unsupported, "only pytorch_model.bin: pickle files run code when read, llmc", "take"),
        (
            ("model.onnx", "tokenizer.json"),
            Unsupported,
            "only weights of other programs: model.onnx",
            "the safetensors",
        ),
        (
            ("tf_model.h5", "pytorch_model.bin"),
            Unsupported,
            "only weights of other programs: pytorch_model.bin, tf",
            "",
        ),
        (
            ("params.json", "consolidated.00.pth"),
            Unsupported,
            "Meta's or Mistral's own form (params.json",
            "the Hugging",
        ),
        (("consolidated.safetensors", "params.json"), Unsupported, "Meta's or Mistral's own form", "the Hugging Face"),
        (
            ("model.safetensors",),
            CheckpointError,
            "model.safetensors without config.json",
            "config.json and the tokeni",
        ),
        (("model_index.json",), Unsupported, "a pipeline of diffusers, not a language model", ""),
        (("a.llmc",), CheckpointError, "engines: a.llmc", "llmc run {path}/a.llmc"),
        (("one/config.json", "two/config.json"), CheckpointError, "folders with a checkpoint: one, two", "{path}/one"),
        (("notes", "x.txt"), CheckpointError, "2 other files: notes, x.txt", "a folder with config.json"),
    ],
)
def test_a_folder_that_is_no_checkpoint(files: tuple[str, ...], kind: type[LlmcError], found: str, fix: str):
    path = folder(*files)
    said = refusal(path, kind)
    assert said.startswith(f"expected config.json and safetensors weights in folder {path}\n  found: {found}")
    assert fix.format(path=path) in said
    assert "download the checkpoint again" not in said


def test_a_repository_of_the_cache_is_known_by_its_name():
    path = folder()
    path = path.rename("models--org--name").absolute()
    (path / "refs").mkdir()
    (path / "snapshots" / ("a" * 40)).mkdir(parents=True)
    assert f"try: the id org/name, or the folder {path}/snapshots/{'a' * 40}" in refusal(path)


def test_a_config_alone():
    path = write_single(Path("c").absolute())
    (path / "model.safetensors").unlink()
    said = refusal(path)
    assert said.startswith("expected weights in model.safetensors, or in shards listed by model.safetensors.index.json")
    assert "\n  found: config.json and no weights\n  try: the weights too (hf download ORG/NAME --local-dir " in said
    assert open_checkpoint(path, random_weights=0).random_seed == 0


@pytest.mark.parametrize("command", ["build", "passes", "inspect"])
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("m.gguf", b"GGUF\x03", "a GGUF file"),
        ("pytorch_model.bin", b"PK\x03\x04", "a PyTorch pickle"),
        ("m.onnx", b"\x08\x0a", "an ONNX model"),
    ],
)
def test_files_of_other_programs(call: Call, command: str, name: str, content: bytes, found: str):
    Path(name).write_bytes(content)
    said = call(command, name, *(("-o", "e.llmc") if command == "build" else ()))
    assert said.code == 3
    assert said.err.startswith(f"llmc: expected a checkpoint folder at {name}\n  found: {found}")
    assert "\n  try: the safetensors form of the model" in said.err
    assert not Path("e.llmc").exists()


@pytest.mark.parametrize("command", ["build", "passes"])
def test_an_engine_is_built_already(call: Call, command: str, pico_engine: PicoEngine):
    shutil.copy(pico_engine("int8"), "m.llmc")
    shutil.copy(pico_engine("int8"), "renamed")
    for name in ("m.llmc", "renamed"):
        said = call(command, name, *(("-o", "e.llmc") if command == "build" else ()))
        assert (said.code, said.err.splitlines()) == (
            3,
            [
                f"llmc: expected a checkpoint folder at {name}",
                "  found: an engine, which is built already",
                f"  try: llmc run {name}; to build it again, the checkpoint that it was made from",
            ],
        )


def test_a_file_of_the_checkpoint_in_place_of_its_folder():
    path = write_sharded(Path("c").absolute())
    for name in ("config.json", "model.safetensors.index.json"):
        said = refusal(path / name)
        assert (
            said
            == f"expected a checkpoint folder at {path / name}\n  found: a file named {name}\n  try: the folder: {path}"
        )
    Path("notes.txt").touch()
    assert "try: the folder that holds config.json" in refusal(Path("notes.txt"))
    shutil.copy(path / "model-00001-of-00002.safetensors", "alone.safetensors")
    assert "found: alone.safetensors without config.json" in refusal(Path("alone.safetensors"))


@pytest.mark.parametrize("command", ["build", "passes", "inspect"])
@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/org/name", "hf.co/org/name", "https://huggingface.co/org/name/resolve/main/config.json"],
)
def test_an_address_of_the_hub_leads_to_the_id(call: Call, command: str, address: str):
    said = call(command, address, *(("-o", "e.llmc") if command == "build" else ()))
    assert (said.code, said.err) == (
        3,
        f"llmc: cannot open checkpoint {address}\n  found: the address of a page on the hub\n"
        "  try: the id of that model: org/name\n",
    )


@pytest.mark.parametrize("command", ["build", "passes", "inspect"])
def test_a_typing_error_in_the_path(call: Call, command: str):
    shutil.copytree(PICO, "models/small/pico")
    for typed in ("models/small/picco", "modls/small/pico", "./models/small/picos"):
        said = call(command, typed, *(("-o", "e.llmc") if command == "build" else ()))
        assert said.code == 3
        assert "found: no such folder (did you mean 'models/small/pico'?)" in said.err


def test_a_typing_error_that_looks_like_a_hub_id(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(Path("hub").absolute()))
    shutil.copytree(PICO, "models/pico")
    with pytest.raises(ResourceError, match=r"^cannot get models/picco .*\(did you mean 'models/pico'\?\)\n"):
        open_checkpoint("models/picco")
    with pytest.raises(
        ResourceError, match=r"^cannot get modells/pico from Hugging Face \(no folder has that name\)\n"
    ):
        open_checkpoint("modells/pico")
