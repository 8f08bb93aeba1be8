"""Names and messages of strangers reach no terminal raw: every command that prints some is given hostile ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import Call, edit, edit_engine, edit_header
from support.engines import PICO, PicoEngine, small_checkpoint

from llmc.cli.app import run
from llmc.cli.common import console
from llmc.runtime.errors import CheckpointError, printable
from llmc.runtime.progress import debug, set_debug_level

HOSTILE = "\x1b]0;owned\x07\x7f\x9b31m\u202e\u2066\u200b\u2028\r\t[red]x"
"""Sets a terminal's title, deletes, colours, reorders, hides, breaks the line, returns to its start; rich markup."""
LINES = HOSTILE + "\nllmc: all is well"
TEMPLATE = "{{ raise_exception(" + json.dumps(LINES) + ") }}"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


def clean(said: tuple[int, str], code: int, *parts: str) -> str:
    """What a command said, which holds nothing that is not printable, and begins no line with a stranger's."""
    found, text = said
    assert found == code, text
    assert [one for one in text if not (one.isprintable() or one == "\n")] == []
    assert "\nllmc: all is well" not in f"\n{text}"
    for part in parts:
        assert part in text
    return text


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / HOSTILE / "checkpoint"
    folder.parent.mkdir()
    small_checkpoint(folder)
    edit(folder / "tokenizer_config.json", lambda config: config.update(chat_template=TEMPLATE))
    return folder


@pytest.fixture
def forged(pico_engine: PicoEngine, tmp_path: Path) -> Path:
    """An engine whose manifest says hostile things wherever a text may stand."""

    def change(header: dict) -> None:
        manifest = json.loads(header["__metadata__"]["llmc"])
        manifest["model"]["architecture"] = LINES
        manifest["tools"] = {LINES: LINES}
        manifest["unused"] = {LINES: LINES}
        manifest["formats"] |= {LINES: "int8"}
        header["__metadata__"]["llmc"] = json.dumps(manifest, sort_keys=True, separators=(",", ":"))

    return edit_engine(pico_engine("int8"), tmp_path / f"{HOSTILE}.llmc", change)


def test_a_build(say: Call, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path) -> None:
    engine, report = tmp_path / f"{HOSTILE}.llmc", tmp_path / f"{HOSTILE}.md"
    (checkpoint / f"{HOSTILE}.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    said = say("build", checkpoint, "-o", engine, "--verbose", "--dump", tmp_path / f"{HOSTILE}d", "--report", report)
    clean(said, 0, "warning: chat template", r"\x1b]0;owned\x07\x7f\x9b31m\u202e\u2066\u200b\u2028\r\t[red]x\nllmc:")
    for file in (report, tmp_path / f"{HOSTILE}d" / "index.html"):
        assert [one for one in file.read_text() if not (one.isprintable() or one == "\n")] == []
    clean(say("run", engine, "--chat", "hello"), 2, r"\x1b]0;owned")
    code = run(["run", str(engine), "--chat", "hello", "--debug", "1", "--json"])
    shown = capsys.readouterr()
    clean((code, shown.out + shown.err), 2, "Traceback", r"\x1b]0;owned")
    assert HOSTILE in json.loads(shown.out)["error"]["message"], "JSON is exact"
    for command in (
        ["inspect", engine, "--verbose"],
        ["verify", engine],
        ["doctor", engine],
        ["bench", engine, "-p", 8, "-n", 2],
    ):
        clean(say(*command), 0, r"\x1b]0;owned")
    text = tmp_path / f"{HOSTILE}.txt"
    text.write_text("some text " * 20)
    for form in ("text", "md", "csv", "json"):
        clean(say("eval", engine, "--text", text, "--format", form), 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update({LINES: 1}),
        lambda config: config.update(architectures=[LINES]),
        lambda config: config.update(model_type=LINES),
        lambda config: config.update(hidden_act=LINES),
        lambda config: config.update(torch_dtype=LINES),
        lambda config: config.update(rope_scaling={"rope_type": LINES, LINES: 1}),
        lambda config: config.update(quantization_config={"quant_method": LINES}),
        lambda config: config.update(auto_map={LINES: LINES}, hidden_size=LINES),
        lambda config: config.update(transformers_version=LINES, _name_or_path=LINES, problem_type=LINES, vocab_size=7),
    ],
)
@pytest.mark.parametrize(
    "command", [["build", "-o", "e.llmc"], ["inspect"], ["inspect", "--json"], ["passes"], ["run", "x"]]
)
def test_a_configuration(say: Call, checkpoint: Path, change: object, command: list[str]) -> None:
    edit(checkpoint / "config.json", change)  # type: ignore[arg-type]
    code = 0 if command[0] == "inspect" else 3
    clean(say(command[0], checkpoint, *command[1:]), code)


def test_files_of_a_checkpoint(say: Call, checkpoint: Path, tmp_path: Path) -> None:
    edit(checkpoint / "generation_config.json", lambda found: found) if (
        checkpoint / "generation_config.json"
    ).exists() else None
    (checkpoint / "generation_config.json").write_text(json.dumps({LINES: 1, "temperature": LINES}))
    clean(say("build", checkpoint, "-o", tmp_path / "e.llmc"), 3)
    (checkpoint / "generation_config.json").write_text("{\x1b" + HOSTILE)
    clean(say("build", checkpoint, "-o", tmp_path / "e.llmc"), 3)
    (checkpoint / "generation_config.json").unlink()
    edit_header(
        checkpoint / "model.safetensors", lambda header: header.update({LINES: header.pop("model.norm.weight")})
    )
    for command in (["build", "-o", tmp_path / "e.llmc"], ["inspect"]):
        clean(say(command[0], checkpoint, *command[1:]), 3, "printable characters")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {LINES: LINES}}))
    clean(say("build", checkpoint, "-o", tmp_path / "e.llmc"), 3)
    shutil.copy(PICO / "model-00001-of-00002.safetensors", checkpoint)
    table = {LINES: "model-00001-of-00002.safetensors", "model.embed_tokens.weight": "model-00001-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    clean(say("build", checkpoint, "-o", tmp_path / "e.llmc"), 3)
    clean(say("inspect", checkpoint), 0)


def test_a_tokenizer(say: Call, checkpoint: Path, tmp_path: Path) -> None:
    def change(document: dict) -> None:
        document["added_tokens"][0]["content"] = LINES

    edit(checkpoint / "tokenizer.json", change)
    edit(checkpoint / "tokenizer_config.json", lambda config: config.update(eos_token=LINES, bos_token=LINES))
    clean(say("build", checkpoint, "-o", tmp_path / "e.llmc"), say("build", checkpoint, "-o", tmp_path / "f.llmc")[0])


def test_an_engine(say: Call, forged: Path, tmp_path: Path) -> None:
    for command in (["inspect"], ["inspect", "--verbose"], ["inspect", "--json"], ["doctor"], ["verify"]):
        text = clean(say(command[0], forged, *command[1:]), say(command[0], forged, *command[1:])[0])
        if "--json" in command:
            assert json.loads(text.splitlines()[0])["model"]["architecture"] == LINES, "JSON is exact"
    clean(say("run", forged, "def", "--max-tokens", 1, "--show-prompt"), 0)
    forged.write_bytes(forged.read_bytes()[:-9])
    for command in (["inspect"], ["verify"], ["doctor"], ["run", "x"], ["bench"], ["eval", "--text", forged]):
        found = say(command[0], forged, *command[1:])
        clean(found, found[0], r"\x1b]0;owned")


def test_what_a_user_gives(say: Call, pico_engine: PicoEngine, tmp_path: Path) -> None:
    engine, file = pico_engine("int8"), tmp_path / f"{HOSTILE}.yaml"
    file.write_text(f"version: 1\n{json.dumps(LINES)}: 1\n")
    clean(say("build", PICO, "-o", tmp_path / "e.llmc", "--recipe", file), 2)
    file.write_text(
        "version: 1\nquantize:\n  rules:\n    - {match: " + json.dumps(HOSTILE) + ", format: " + HOSTILE[-12:] + "}"
    )
    clean(say("build", PICO, "-o", tmp_path / "e.llmc", "--recipe", file), 2)
    file.write_text(json.dumps({"prompt": "x", LINES: 1}))
    clean(say("run", engine, "--prompts", file), 2)
    file.write_text(
        json.dumps({"prompt": "x", "id": LINES, "max_tokens": LINES})
        + "\n"
        + json.dumps({"prompt": "y", "max_tokens": 1})
    )
    found = say("run", engine, "--prompts", file)
    clean(found, 2)
    assert json.loads(found[1].splitlines()[0])["id"] == LINES, "JSON is exact"
    for flags in (
        *(["--max-tokens", HOSTILE], ["--stop", ""], ["--logit-bias", LINES]),
        *([f"--{HOSTILE}"], ["--chat-template", tmp_path / HOSTILE], ["--verify", HOSTILE]),
    ):
        clean(say("run", engine, "x", *flags), 2)
    clean(say("recipes", HOSTILE), 2)
    clean(say("passes", "--from", tmp_path / HOSTILE), 2)
    clean(say("kernels", "--sm", HOSTILE), 2)
    clean(say("bench", engine, "--gate", HOSTILE), 2)
    clean(say("doctor", "--for", HOSTILE), 2)
    clean(say(HOSTILE), 2)
    for command in ("run", "inspect", "verify", "bench", "doctor"):
        found = say(command, tmp_path / HOSTILE, *(["x"] if command == "run" else []))
        clean(found, found[0], r"\x1b]0;owned")


def test_the_cache(say: Call, checkpoint: Path) -> None:
    clean(say("run", checkpoint, "hello", "--max-tokens", 1), 0, r"\x1b]0;owned")
    for command in (["list"], ["list", "--json"], ["du"], ["rm", checkpoint]):
        clean(say("cache", *command), 0)


def test_the_models_own_text_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console.out_model(HOSTILE)
    assert capsys.readouterr().out == HOSTILE


def test_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: LINES + "é 日本\u3000語 \U000e0001\ud800"}
    console.out_json(value)
    line = capsys.readouterr().out
    assert json.loads(line) == value
    assert [one for one in line[:-1] if not (one.isprintable() or one == "\u3000")] == []
    assert "é 日本\u3000語" in line


def test_the_door(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = r"\x1b]0;owned\x07\x7f\x9b31m\u202e\u2066\u200b\u2028\r\t[red]x"
    assert printable(HOSTILE) == printable(printable(HOSTILE)) == shown
    assert printable("a\nb\u00a0é日本🙂\u3000") == "a\nb\u00a0é日本🙂\u3000"
    assert printable("a\nb", lines=False) == r"a\nb"
    assert printable("\ud800\U000e0001") == r"\ud800\U000e0001"
    for say in (console.out, console.note, lambda text: console.show({}, text, json=False)):
        say(HOSTILE)
    console.warn(LINES)
    set_debug_level("1")
    debug(1, HOSTILE)
    set_debug_level("0")
    found = capsys.readouterr()
    assert found.out == f"{shown}\n" * 2
    assert found.err == f"{shown}\nwarning: {shown}\\nllmc: all is well\ndebug 1: {shown}\n"
    assert console.table([("a", LINES)]) == f"  a  {shown}\\nllmc: all is well"
    assert console.fill("{x}", {"x": LINES}) == f"{shown}\\nllmc: all is well"
    said = str(CheckpointError(f"cannot read {LINES}", found="a\nb\n  c"))
    assert said == f"cannot read {HOSTILE}\\nllmc: all is well\n  found: a\\nb\n  c"
