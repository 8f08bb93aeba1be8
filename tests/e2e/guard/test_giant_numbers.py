"""Refuses numbers of 309 digits and more, which no double holds, and of more than 4300, which Python does not write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import Call, edit_engine
from support.engines import PICO, PicoEngine, small_checkpoint

from llmc.cli.app import run
from llmc.runtime.errors import RecipeError
from llmc.runtime.sampling.params import RANGES, SamplingParams, defaults_of

GIANTS = ("9" * 309, "9" * 5000, "-" + "9" * 400, "1e400")


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


FLAGS = {
    "run": ("--max-tokens", "--threads", *(f"--{name.replace('_', '-')}" for name in RANGES)),
    "build": ("--max-context", "--max-batch", "--random-weights", "--memory-limit", "--max-shard-size"),
    "eval": ("--max-tokens", "--window"),
    "bench": ("--repeat", "--batch", "--prompt-tokens", "--new-tokens"),
}
FORMS = {
    "run": ("--logit-bias=1={}", "--logit-bias={}=1"),
    "build": ("--memory-limit={}GB", "--max-shard-size={}GB", "--target=sm_{}"),
    "eval": ("--gate=ppl<={}", "--gate=top1>={}%"),
    "bench": ("--gate=decode>={}",),
}


@pytest.mark.parametrize("number", GIANTS, ids=("309", "5000", "-400", "1e400"))
@pytest.mark.parametrize("command", FLAGS)
def test_flags(say: Call, pico_engine: PicoEngine, tmp_path: Path, command: str, number: str) -> None:
    rest = {"run": ["def"], "build": ["-o", tmp_path / "x.llmc"], "eval": ["--text", PICO / "README.md"]}
    given = PICO if command == "build" else pico_engine("int8")
    for flag in (*(f"{one}={{}}" for one in FLAGS[command]), *FORMS[command]):
        code, text = say(command, given, *rest.get(command, ()), flag.format(number))
        assert code == 2, (flag, text[-500:])
        assert "bug in llmc" not in text


@pytest.mark.parametrize("number", GIANTS, ids=("309", "5000", "-400", "1e400"))
def test_a_variable_and_a_recipe(
    say: Call, pico_engine: PicoEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"version: 1\nmax_context: {number}\n")
    assert say("build", PICO, "-o", tmp_path / "x.llmc", "--recipe", recipe)[0] == 2
    monkeypatch.setenv("LLMC_THREADS", number)
    assert say("run", pico_engine("int8"), "def")[0] == 2


GOOD = '{"prompt": "def", "max_tokens": 1}'
LINES = (
    *(f'{{"prompt": "def", "{name}": @}}' for name in ("max_tokens", *RANGES)),
    '{"prompt": "def", "logit_bias": {"1": @}}',
    '{"custom_id": "a", "body": {"prompt": "def", "temperature": @}}',
    '{"custom_id": "a", "body": {"prompt": "def", "max_tokens": @}}',
    '{"custom_id": "a", "body": {"prompt": "def", "logit_bias": {"1": @}}}',
)
WHOLE = (
    '{"tokens": [1, @]}',
    '{"prompt": "def", "logit_bias": {"@": 1}}',
    '{"custom_id": "a", "body": {"prompt": "def", "logprobs": @}}',
    '{"custom_id": "a", "body": {"prompt": "def", "logit_bias": {"@": 1}}}',
    '{"prompt": "def", "id": @}',
)


def test_a_line_of_prompts_ends_alone(
    pico_engine: PicoEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [line.replace("@", number) for line in LINES for number in GIANTS]
    bad += [line.replace("@", number) for line in WHOLE for number in GIANTS[:2]]
    bad = [line.replace('"a"', f'"{index}"') for index, line in enumerate(bad)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join([*bad, GOOD]))
    assert run(["run", str(pico_engine("int8")), "--prompts", str(path)]) == 2
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert len(answers) == len(bad) + 1
    assert f"{len(bad)} of {len(answers)} prompts failed" in shown.err
    for answer in answers[:-1]:
        error = answer.get("error") or answer["response"]["body"]["error"]
        assert (error.get("class") or error["code"]) == "RecipeError"
    assert answers[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("number", GIANTS, ids=("309", "5000", "-400", "1e400"))
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "vocab_size"),
        ("config.json", "rope_theta"),
        ("config.json", "max_position_embeddings"),
        ("generation_config.json", "temperature"),
        ("generation_config.json", "max_length"),
        ("tokenizer_config.json", "model_max_length"),
    ],
)
def test_files_of_a_checkpoint(say: Call, tmp_path: Path, file: str, key: str, number: str) -> None:
    folder = tmp_path / "checkpoint"
    small_checkpoint(folder)
    text = (folder / file).read_text() if (folder / file).exists() else "{}"
    values = {name: value for name, value in json.loads(text).items() if name != key}
    body = json.dumps(values)[1:-1]
    (folder / file).write_text("{" + ", ".join(filter(None, (body, f'"{key}": {number}'))) + "}")
    code, said = say("build", folder, "-o", tmp_path / "x.llmc")
    assert code == 3
    assert file in said and ("too large" in said or key in said)


@pytest.mark.parametrize("number", GIANTS[:3], ids=("309", "5000", "-400"))
def test_an_engines_defaults(say: Call, pico_engine: PicoEngine, tmp_path: Path, number: str) -> None:
    def change(header: dict) -> None:
        manifest = json.loads(header["__metadata__"]["llmc"])
        manifest["generation"] = {"do_sample": True, "temperature": "@"}
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        header["__metadata__"]["llmc"] = text.replace('"@"', number)

    forged = edit_engine(pico_engine("int8"), tmp_path / "forged.llmc", change)
    for command in (["run", "def"], ["inspect"], ["verify"], ["doctor"]):
        code, text = say(command[0], forged, *command[1:])
        assert (code, "which is too large" in text) == (3, True), text


def test_the_library() -> None:
    for giant in (10**400, 10**5000, -(10**5000)):
        for name in ("temperature", "top_k", "seed"):
            with pytest.raises(RecipeError, match=f"expected {name} as a"):
                SamplingParams(**{name: giant})
        with pytest.raises(RecipeError, match="logit_bias"):
            SamplingParams(logit_bias=((1, giant),))
    assert defaults_of({"do_sample": True, "temperature": 10**5000}).temperature == RANGES["temperature"].high
