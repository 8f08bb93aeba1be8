"""Damaged, hostile checkpoints, tokenizers, templates and recipes met by a user: code, message, no leftovers."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import (
    DOWN,
    EMBEDDING,
    FIRST,
    HEAD,
    INDEX,
    NORM,
    SECOND,
    UP,
    Call,
    built,
    edit,
    edit_header,
    refused,
    retensor,
)
from support.engines import PicoEngine
from support.paths import PICO

import llmc
from llmc.quantize import FORMATS


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint, to be damaged."""
    return Path(shutil.copytree(PICO, tmp_path / "checkpoint"))


def _duplicate(text: str) -> str:
    entry = re.search(rf'"{NORM}": {{[^}}]*}}, ', text)
    assert entry is not None
    return text.replace(entry[0], entry[0] * 2)


def _replace(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new, 1))


def _config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


def _entry(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit_header(folder / FIRST, lambda header: header[NORM].update(values))


def _become(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _dtype(dtype: torch.dtype) -> Callable[[Path], None]:
    return lambda folder: retensor(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(dtype)}))


def _pickle_only(folder: Path) -> None:
    for name in (FIRST, SECOND, INDEX):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 260038\n"
HTML = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
SHARD_OF = {"weight_map": {EMBEDDING: "../../etc/x.safetensors"}}
REFUSED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "an offset that wraps": (_entry(data_offsets=[2**64 - 8, 2**64]), (NORM, "fewer than 2^63 bits and bytes")),
    "a shape that wraps": (_entry(shape=[2**40, 2**40]), (NORM, "fewer than 2^63 bits and bytes")),
    "an overlap": (_entry(data_offsets=[0, 512]), ("tensors that do not overlap", NORM, EMBEDDING)),
    "trailing bytes": (lambda c: (c / FIRST).open("ab").write(b"12345678"), ("8 more than the tensors cover",)),
    "a tensor twice": (
        lambda c: edit_header(c / FIRST, lambda header: None, _duplicate),
        (f"the key '{NORM}' twice in one object",),
    ),
    "a key of the index twice": (
        lambda c: _replace('"weight_map": {', '"weight_map": {"a": "b", "a": "b",')(c / INDEX),
        (f"{INDEX}: unambiguous JSON", "the key 'a' twice"),
    ),
    "a key of the config twice": (
        lambda c: _replace('"hidden_size"', '"hidden_size": 1, "hidden_size"')(c / "config.json"),
        ("config.json: unambiguous JSON", "the key 'hidden_size' twice"),
    ),
    "bottomless nesting": (
        lambda c: (c / FIRST).write_bytes(struct.pack("<Q", 100_005) + b'{"a":' + b"[" * 100_000),
        ("JSON nested at most 4 levels deep",),
    ),
    "a shard of another folder": (
        lambda c: (c / INDEX).write_text(json.dumps(SHARD_OF)),
        ('"../../etc/x.safetensors": leads to another folder',),
    ),
    "a shard that is missing": (lambda c: (c / SECOND).unlink(), (f"found: 1 missing: {SECOND}",)),
    "a cut shard": (lambda c: (c / FIRST).write_bytes((c / FIRST).read_bytes()[:-9]), (FIRST, "it is cut off")),
    "an LFS pointer as shard": (_become(FIRST, LFS), ("found: a Git LFS pointer, not the weights", "git lfs pull")),
    "a web page as shard": (_become(FIRST, HTML), ("found: an HTML page, not the weights", "download the file again")),
    "an LFS pointer as config": (_become("config.json", LFS), ("a Git LFS pointer, not the file itself", "lfs pull")),
    "a web page as index": (_become(INDEX, HTML), (INDEX, "found: an HTML page, not the file itself")),
    "pickles only": (_pickle_only, ("found: only pytorch_model.bin: pickle files run code when read",)),
    "a private field of unknown meaning": (_config(_private_kernel="org/x"), ("--accept-config _private_kernel",)),
    "another hidden size": (_config(hidden_size=320), ("74 disagreements", f"{NORM}: expected [320], found [256]")),
    "heads that do not divide": (
        lambda c: edit(
            c / "config.json", lambda d: (d.pop("head_dim"), d.update(num_attention_heads=3, num_key_value_heads=1))
        ),
        ('"hidden_size" as a multiple of num_attention_heads, 3',),
    ),
    "two thousand layers": (_config(num_hidden_layers=2048), ("18360 disagreements", "and 18340 more")),
    "a missing head": (_config(tie_word_embeddings=False), (f"{HEAD}: expected [4096, 256], found nothing",)),
    "float64 weights": (_dtype(torch.float64), (f"tensor '{DOWN}' as one of BF16, F16, F32\n  found: F64",)),
    "integer weights": (_dtype(torch.int8), (f"tensor '{DOWN}' as one of BF16, F16, F32\n  found: I8",)),
    "fp8 without scales": (_dtype(torch.float8_e4m3fn), (f"tensor '{DOWN}' as one of", "found: F8_E4M3")),
    "an end token past the vocabulary": (_config(eos_token_id=5000), ('"eos_token_id" as token ids below',)),
    "a tokenizer of 1 GB": (
        lambda c: (c / "tokenizer.json").open("ab").truncate(1 << 30),
        ("tokenizer.json: a file of at most", "found: 1073741824 bytes"),
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_damaged_checkpoint_is_refused(
    call: Call, checkpoint: Path, case: tuple[Callable[[Path], object], tuple[str, ...]]
):
    damage, said = case
    damage(checkpoint)
    refused(call, checkpoint, *said)


WITHOUT_TORCH = """
import sys
from llmc.cli.app import run
code = run(["build", *sys.argv[1:], "-o", "never.llmc"])
print(code, sorted({"torch", "onnx", "onnx_ir", "onnxruntime"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("damage", "flags", "code"),
    [
        (_become(FIRST, HTML), [], 3),
        (_config(hidden_size=320), [], 3),
        (lambda c: (c / "r.yaml").write_text("version: 1\nquantise: {}\n"), ["--recipe", "./r.yaml"], 2),
        (lambda c: None, ["--quantize", "int5"], 2),
    ],
    ids=["damaged shard", "shapes", "recipe", "flag"],
)
def test_what_can_be_refused_early_is_refused_before_torch_is_imported(
    checkpoint: Path, damage: Callable[[Path], object], flags: list[str], code: int
):
    damage(checkpoint)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(checkpoint), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkpoint)
    assert done.stdout.split("\n")[0] == f"{code} []", done.stderr


def test_an_extra_shard_is_a_warning(call: Call, checkpoint: Path):
    shutil.copy(checkpoint / SECOND, checkpoint / "extra.safetensors")
    assert f"warning: extra.safetensors is not read: {INDEX} does not list it" in built(call, checkpoint)[1]


def test_remote_code_is_reported_and_never_imported(call: Call, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    (checkpoint / "modeling_evil.py").write_text("raise SystemExit(99)")
    (checkpoint / "torch.py").write_text("raise SystemExit(99)")
    _config(auto_map={"AutoModelForCausalLM": "modeling_evil.Model"}, trust_remote_code=True)(checkpoint)
    monkeypatch.chdir(checkpoint)
    text = built(call, checkpoint)[1]
    assert "warning: auto_map: remote code is never imported" in text
    assert "warning: trust_remote_code: remote code is never imported" in text
    assert "modeling_evil" not in sys.modules


def test_a_head_beside_a_tied_embedding(call: Call, checkpoint: Path):
    retensor(checkpoint, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert f"unused: {HEAD} (bit-equal to the tied embedding)" in built(call, checkpoint, "-v")[1]
    (checkpoint.parent / "e.llmc").unlink()
    tensors = load_file(checkpoint / "model.safetensors")
    save_file(tensors | {HEAD: tensors[HEAD] + 1}, checkpoint / "model.safetensors")
    refused(call, checkpoint, f"found: tensor '{HEAD}' that differs from '{EMBEDDING}'")


def test_a_flag_in_text_config_only_is_resolved_and_reported(call: Call, checkpoint: Path):
    edit(
        checkpoint / "config.json",
        lambda c: c.update(text_config={"tie_word_embeddings": c.pop("tie_word_embeddings")}),
    )
    assert "warning: tie_word_embeddings = true: found in text_config only" in built(call, checkpoint)[1]


@pytest.mark.parametrize("quantize", ["none", *FORMATS])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_leaves_the_old_engine(call: Call, checkpoint: Path, quantize: str, value: float):
    old = checkpoint.parent / "e.llmc"
    old.write_bytes(b"old")
    retensor(checkpoint, lambda tensors: tensors[UP][5].fill_(value))
    code, text = call("build", checkpoint, "-o", old, "--quantize", quantize)
    assert (code, f"{UP} has non-finite values" in text) == (3, True)
    assert old.read_bytes() == b"old"
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint", "e.llmc"]


def test_a_constant_weight_is_a_warning(call: Call, checkpoint: Path):
    retensor(checkpoint, lambda tensors: (tensors[UP].zero_(), tensors[DOWN].fill_(0.5)))
    text = built(call, checkpoint, "--quantize", "int4")[1]
    assert f"warning: tensor {UP} is constant" in text
    assert f"warning: tensor {DOWN} is constant" in text


# --- tokenizers and templates: faults 14 and 22 to 26 ---

RUNAWAY = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
BAD_TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "two tokens of one id": (
        lambda c: edit(c / "tokenizer.json", lambda d: d["model"]["vocab"].update(zzz=300)),
        "one token for each id; id 300 is '.assert' and 'zzz'",
    ),
    "an id past the embedding": (
        lambda c: edit(
            c / "tokenizer.json",
            lambda d: d["added_tokens"].append({**d["added_tokens"][0], "content": "<x>", "id": 999_999}),
        ),
        "ids below the 4096 rows of the embedding; 999999 ('<x>')",
    ),
    "an end token that is not there": (
        lambda c: edit(c / "tokenizer_config.json", lambda d: d.update(eos_token="<nope>")),
        "eos_token '<nope>' of tokenizer_config.json is not in the vocabulary",
    ),
    "a runaway pattern": (
        lambda c: edit(c / "tokenizer.json", lambda d: d.update(pre_tokenizer=RUNAWAY)),
        "PanicException",
    ),
    "cut off": (
        lambda c: (c / "tokenizer.json").write_bytes((c / "tokenizer.json").read_bytes()[:-200]),
        "tokenizer.json: well-formed JSON",
    ),
    "an LFS pointer": (_become("tokenizer.json", LFS), "a Git LFS pointer, not the file itself\n  try: git lfs pull"),
    "a configuration that is a list": (
        _become("tokenizer_config.json", b"[]"),
        "tokenizer_config.json: a JSON object\n  found: []",
    ),
}


@pytest.mark.parametrize("case", BAD_TOKENIZERS.values(), ids=BAD_TOKENIZERS)
def test_a_bad_tokenizer_is_refused(call: Call, checkpoint: Path, case: tuple[Callable[[Path], object], str]):
    damage, said = case
    damage(checkpoint)
    refused(call, checkpoint, said)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ '{:2000000000d}'.format(1) }}",
    ],
    ids=["loops", "a long string", "a wide number"],
)
def test_a_template_bomb_ends_the_build(call: Call, checkpoint: Path, template: str):
    (checkpoint / "chat_template.jinja").write_text(template)
    refused(call, checkpoint, "check the chat template\n  found: ")


def test_a_template_cannot_reach_python_or_files(call: Call, checkpoint: Path):
    (checkpoint / "chat_template.jinja").write_text(
        "{{ messages.__class__ }}{{ raise_exception.__globals__ }}{{ messages.append(messages[0]) }}"
        "{% include '/etc/passwd' %}"
    )
    path, text = built(call, checkpoint)
    assert "warning: chat template: render the chat template; template not found" in text
    code, text = call("run", path, "hi", "--chat")
    assert (code, "template not found" in text, "root:" in text) == (2, True, False)


def test_a_missing_template_is_a_warning(call: Call, checkpoint: Path):
    path, text = built(call, checkpoint)
    assert "warning: no chat template: `llmc run --chat` will be refused" in text
    code, text = call("run", path, "hi", "--chat")
    assert (code, "found: no chat template in the checkpoint" in text) == (3, True)


def test_a_template_that_refuses_a_conversation_says_why(call: Call, checkpoint: Path):
    (checkpoint / "chat_template.jinja").write_text(
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first!') }}{% endif %}{{ messages }}"
    )
    path, text = built(call, checkpoint)
    assert "warning: chat template: render the chat template; a system message first!" in text
    code, text = call("run", path, "hi", "--chat")
    assert (code, "found: a system message first!" in text) == (2, True)
    assert call("run", path, "hi", "--chat", "--system", "be brief", "--max-tokens", 1)[0] == 0


def test_special_tokens_spelled_by_a_user_have_the_ids_of_plain_text(pico_engine: PicoEngine):
    with llmc.load(pico_engine("int8")) as engine:
        special = engine.tokenizer.special_tokens
        for text in (*special, f"a{'b'.join(special)}c"):
            ids = engine.tokenizer.encode(text, bos=False)
            assert not set(ids) & set(special.values())
            assert engine.tokenizer.decode(ids, skip_special=False) == text
        assert engine.tokenizer.encode("<|end_of_text|>", bos=False, special=True) == [special["<|end_of_text|>"]]


# --- recipes: faults 27 and 28 ---


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "version: 1\nquantise: {}\n",
            ":2:1: unknown key 'quantise' (did you mean 'quantize'?)\n    quantise: {}\n    ^",
        ),
        ("version: 1\nversion: 1\n", ":2:1: the key 'version' stands here a second time"),
        ("version: 1\na: &a [x]\nb: [*a, *a]\n", ":2:4: anchors and aliases are not used here"),
        ("version: 1\n\tmax_batch: 4\n", ":2:1: a tab: use spaces"),
        ("version: 1\nmax_batch: 12:30\n", ":2:12: expected an integer, found the text '12:30'"),
        ("version: 1\nquantize: {default: no}\n", ":2:21: expected a weight format, found 'no' (did you mean 'none'?)"),
        ("warp: 9\nversion: 2\n", ":2:10: expected recipe version 1, found 2"),
        ("version: 1\nparallel: {tensor: 3}\n", ":2:1: 'parallel' is not built yet"),
        ("version: 1\nkv: fp4\n", ":2:5: expected kv of none or fp8, found 'fp4' (did you mean 'fp8'?)"),
        ("version: 1\ngates: []\n", ":2:1: 'gates' is not built yet"),
        (
            "version: 1\ntargets: [sm_91]\n",
            ":2:11: expected a target, found 'sm_91' (did you mean 'sm_90'?), known: cpu",
        ),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_at_its_place(call: Call, tmp_path: Path, text: str, said: str):
    (tmp_path / "r.yaml").write_text(text)
    code, shown = call("build", PICO, "-o", tmp_path / "e.llmc", "--recipe", tmp_path / "r.yaml")
    assert code == 2
    assert said in shown
    assert "try: the keys and values of recipes/recipe.schema.json" in shown
    assert not (tmp_path / "e.llmc").exists()
