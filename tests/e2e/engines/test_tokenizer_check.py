"""Tokenizers and templates that a build must refuse, each in a process of its own, with the ids at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from support.samples.talking.templates import LLAMA2, LLAMA31
from support.samples.tokenizers import byte_level_chat, pico, sentencepiece

from llmc.compiler.checkpoint import tokenizer_check
from llmc.compiler.checkpoint.tokenizer_check import DEADLINE_S, MAX_TOKENIZER_BYTES, Checked
from llmc.compiler.tokens.resolve import Sources
from llmc.runtime.errors import CheckpointError

DATA, CONFIG = pico()
ROWS = 4096
RUNAWAY = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}


def start_check(
    data: bytes,
    named: Mapping[str, str],
    rows: int,
    eos_ids: list[int],
    chat_template: str | None = None,
    deadline_s: float = DEADLINE_S,
) -> Future[Checked]:
    special = Sources("llama", rows, eos={"config.json": tuple(eos_ids)} if eos_ids else {}, named=named)
    checkpoint: Any = SimpleNamespace(tokenizer={"tokenizer.json": data}, special=special, chat_template=chat_template)
    return tokenizer_check.start_check(checkpoint, deadline_s=deadline_s)


def notes_of(*question: Any, **options: Any) -> tuple[str, ...]:
    return start_check(*question, **options).result().notes


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(DATA)
    change(document)
    return json.dumps(document).encode()


def added(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda d: d["added_tokens"].append({**d["added_tokens"][0], **fields})


def test_a_sound_tokenizer_passes():
    assert notes_of(DATA, CONFIG, ROWS, [1]) == ()
    assert notes_of(*sentencepiece(), 400, [2]) == ()


def test_more_rows_than_tokens_are_padding():
    assert notes_of(DATA, CONFIG, ROWS + 64, [1]) == ()


def test_a_check_runs_beside_other_work():
    checks = [start_check(DATA, CONFIG, ROWS, [1]) for _ in range(2)]
    assert checks[0].result() == checks[1].result() == checks[1].result()


REFUSED: dict[str, tuple[bytes, dict[str, str], int, list[int], str]] = {
    "ids beyond the rows": (
        *(DATA, CONFIG, 4090, [1]),
        r"ids below the 4090 rows of the embedding; 4090 \('.*'\), 4091 .* 4095 ",
    ),
    "two tokens with one id": (
        *(changed(lambda d: d["model"]["vocab"].update({"new": 300})), CONFIG, ROWS, [1]),
        r"one token for each id; id 300 is '.*' and 'new'",
    ),
    "an added token over another": (
        *(changed(added(content="<x>", id=301)), CONFIG, ROWS, [1]),
        r"one token for each id; id 301 is '.*' and '<x>'",
    ),
    "a gap that renumbers": (
        *(changed(added(content="<x>", id=5000)), CONFIG, 6000, [1]),
        r"'<x>' has id 5000 in the file and 4096 when loaded",
    ),
    "one token with two ids": (
        *(changed(added(content="<|pad|>", id=4096)), CONFIG, 6000, [1]),
        r"'<\|pad\|>' has id \d+ in the file and \d+ when loaded",
    ),
    "an end id without a token": (
        DATA,
        {},
        6000,
        [5000],
        "an end token that the model can write; no token has id 5000",
    ),
    "an end id beyond the rows": (DATA, {}, ROWS, [ROWS], "4096 is not below the 4096 rows of the embedding"),
    "an end token without an id": (
        *(DATA, {"eos_token": "<|nowhere|>"}, ROWS, []),
        r"eos_token '<\|nowhere\|>' of tokenizer_config.json is not in the vocabulary",
    ),
    "an id that is no number": (
        *(changed(lambda d: d["model"]["vocab"].update({"new": "7"})), CONFIG, ROWS, [1]),
        "token 'new' with id '7'",
    ),
    "a negative id": (
        *(changed(lambda d: d["model"]["vocab"].update({"new": -7})), CONFIG, ROWS, [1]),
        "token 'new' with id -7",
    ),
    "no vocabulary": (changed(lambda d: d.pop("model")), CONFIG, ROWS, [1], "read its vocabulary; KeyError: 'model'"),
    "an unknown model": (
        changed(lambda d: d["model"].update(type="?")),
        CONFIG,
        ROWS,
        [1],
        "cannot read tokenizer.json; ",
    ),
    "truncated": (DATA[:-100], CONFIG, ROWS, [1], r"expected well-formed JSON in tokenizer.json; .* at line \d+"),
    "empty": (b"", CONFIG, ROWS, [1], "expected well-formed JSON in tokenizer.json"),
    "a key twice": (
        *(DATA.replace(b'"version": "1.0",', b'"version": "1.0", "version": "1.0",', 1), CONFIG, ROWS, [1]),
        "version",
    ),
    "nested without end": (b'{"model": ' + b"[" * 100_000, CONFIG, ROWS, [1], "nested"),
    "too large": (b" " * (MAX_TOKENIZER_BYTES + 1), CONFIG, ROWS, [1], f"found: {MAX_TOKENIZER_BYTES + 1} bytes"),
    "a runaway regular expression": (
        *(changed(lambda d: d.update(pre_tokenizer=RUNAWAY)), CONFIG, ROWS, [1]),
        "PanicException|did not finish",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_with_the_reason(case: tuple[bytes, dict[str, str], int, list[int], str]):
    data, config, rows, eos, message = case
    with pytest.raises(CheckpointError, match=message) as caught:
        notes_of(data, config, rows, eos)
    assert str(caught.value).startswith("cannot use tokenizer.json\n  found: ")


def test_a_worker_that_is_late_is_killed():
    with pytest.raises(CheckpointError, match=r"cannot use tokenizer.json\n  found: it did not finish in 0.001 s"):
        notes_of(DATA, CONFIG, ROWS, [1], deadline_s=0.001)


@pytest.mark.parametrize("template", (LLAMA2, LLAMA31))
def test_a_template_that_renders_is_no_problem(template: str):
    data, config = byte_level_chat()
    assert not any(note.startswith("chat template:") for note in notes_of(data, config, 5000, [1], template))


@pytest.mark.parametrize(
    ("template", "problem"),
    (
        ("\n{{ 1 + }}", "cannot compile the chat template; syntax error: unexpected 'end of print statement' (line 2)"),
        ("{{ raise_exception('tools only') }}", "cannot render the chat template; tools only"),
    ),
)
def test_a_template_that_fails_is_a_warning(template: str, problem: str):
    assert notes_of(DATA, CONFIG, ROWS, [1], template) == (f"chat template: {problem}",)


@pytest.mark.parametrize(
    ("template", "message"),
    (
        (
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
            "more steps than its budget",
        ),
        (
            "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "more steps",
        ),
        ("{{ '{:20000000000d}'.format(1) }}", "a width in a format: at most 10000"),
        ("{{ a" + "+1" * 32_000 + " }}", "the template nests deeper than 150 levels"),
        ("{% if tools %}{{ 'a' * 1000000000 }}{% endif %}", "more steps than its budget"),
    ),
)
def test_a_template_bomb_is_refused(template: str, message: str):
    with pytest.raises(CheckpointError, match=rf"cannot use the chat template\n  found: .*{message}"):
        start_check(DATA, CONFIG, ROWS, [1], chat_template=template).result()


def test_modules_of_the_working_folder_are_not_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('run by mistake')")
    monkeypatch.chdir(tmp_path)
    assert notes_of(DATA, CONFIG, ROWS, [1]) == ()
