"""What is accepted changes something: a flag, keyword or key that would not is refused (exit 2), or said on stderr."""

from __future__ import annotations

import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from support.commands import Outcome, edit
from support.engines import PicoEngine
from support.paths import PICO
from support.plans import with_plans

import llmc
from llmc.cli.app import application
from llmc.recipes.recipe import QuantizeRule, Recipe, with_flags
from llmc.runtime.errors import RecipeError

Call = Callable[..., Outcome]
BUILD = ("build", PICO, "-o", "e.llmc")
PASSES = ("passes", PICO)
RUN = ("run", "ENGINE", "def main(", "--max-tokens", 2)
GPU = ("inspect", "GPU ENGINE")
GREEDY = "at temperature 0: the likeliest token is always taken\n"

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "build --kv": ((*BUILD, "--kv", "fp8"), "cannot use kv fp8, which would change nothing\n  found: targets cpu, of"),
    "build --activations": (
        (*BUILD, "--activations", "fp8", "--quantize", "int8"),
        "cannot use activations fp8, which would change nothing\n  found: targets cpu, of which none is a GPU's\n"
        "  try: targets such as cpu,h100, or no activations\n",
    ),
    "build --activations of dense weights": (
        (*BUILD, "--activations", "fp8", "--target", "h100"),
        "cannot use activations fp8, which would change nothing\n  found: no weight that is quantized\n"
        "  try: quantize fp8, or no activations\n",
    ),
    "build --for": (
        (*BUILD, "--for", "8xh200", "--parallel", "tp2"),
        "cannot use --for 8xh200, which would change nothing\n  found: a split and a format that are given\n",
    ),
    "build --goal": ((*BUILD, "--goal", "latency"), "cannot use --goal latency, which would change nothing\n"),
    "build --parallel auto": (
        (*BUILD, "--parallel", "auto"),
        "expected --for with parallel auto\n  try: --for 8xh200\n",
    ),
    "build --tactics": ((*BUILD, "--tactics", "table.yaml"), "cannot use a table of tiles for sm_90"),
    "build --accept-config": ((*BUILD, "--accept-config", "absent"), "cannot apply --accept-config absent\n  found: "),
    "build --max-context": ((*BUILD, "--max-context", 513), "cannot build with max_context 513"),
    "build --recipe": (
        (*BUILD, "--recipe", "rule.yaml"),
        "cannot apply recipe rule 'model.layers.9.*'\n  found: none of the 57 linears has such a name",
    ),
    "plan --activations": (
        ("plan", PICO, "--for", "h100", "--quantize", "none", "--activations", "fp8"),
        "cannot use activations fp8, which would change nothing\n  found: no weight that is quantized\n",
    ),
    "plan --force": (("plan", PICO, "--force"), "expected --chart with --force\n"),
    "plan --accept-config": (("plan", PICO, "--accept-config", "absent"), "cannot apply --accept-config absent\n"),
    "passes --kv": ((*PASSES, "--kv", "fp8"), "cannot use kv fp8, which would change nothing"),
    "passes --activations": ((*PASSES, "--activations", "fp8"), "cannot use activations fp8, which would change noth"),
    "passes --from": (
        ("passes", "--from", "g.txt", "--quantize", "int4"),
        "expected no flags of a build beside --from",
    ),
    "run --system": ((*RUN, "--system", "s"), "expected --chat with --system"),
    "run --special": (
        (*RUN, "--chat", "--special"),
        "cannot use --special, which would change nothing\n  found: the te",
    ),
    "run --show-prompt of a file": (
        ("run", "ENGINE", "--prompts", "prompts.jsonl", "--show-prompt"),
        "cannot use --show-prompt, which would change nothing\n  found: prompts of a file are not shown",
    ),
    "run --show-prompt of a conversation": (
        ("run", "ENGINE", "--chat", "--show-prompt"),
        "cannot use --show-prompt, which would change nothing\n  found: messages of a conversation are not shown",
    ),
    "run --logprobs": (
        (*RUN, "--logprobs", 3),
        "cannot use --logprobs, which would change nothing\n  found: text with",
    ),
    "run --logprobs of a conversation": (("run", "ENGINE", "--chat", "--logprobs", 3), "cannot use --logprobs, which"),
    "run --logit-bias": ((*RUN, "--logit-bias", "5=1", "--logit-bias", "5=2"), "expected --logit-bias once for each"),
    "run --max-batch": (
        (*RUN, "--max-batch", 100),
        "expected max_batch from 1 to 8, for which the engine was built\n  found: 100\n"
        "  try: an engine that llmc build --max-batch 100 makes\n",
    ),
    "run --chat-template": ((*RUN, "--chat-template", "template"), "expected --chat with --chat-template\n"),
    "run --chat-template of prompts": (
        ("run", "ENGINE", "--prompts", "tokens.jsonl", "--chat-template", "template"),
        "expected conversations in tokens.jsonl with --chat-template\n",
    ),
    "run --quantize": ((*RUN, "--quantize", "int4"), "cannot apply --quantize to "),
    "run --recipe": ((*RUN, "--recipe", "cpu-int4"), "cannot apply --recipe to "),
    "run --target": ((*RUN, "--target", "h100"), "cannot apply --target to "),
    "run --max-context": ((*RUN, "--max-context", 64), "cannot apply --max-context to "),
    "run --accept-config": ((*RUN, "--accept-config", "k"), "cannot apply --accept-config to "),
    "run --trust": ((*RUN, "--trust", "any"), "expected a profile of a GPU in "),
    "run --simulate": ((*RUN, "--simulate"), "expected a profile of a GPU in "),
    "run --prompts: special of token ids": (
        ("run", "ENGINE", "--prompts", "special.jsonl"),
        'cannot use "special" at special.jsonl:2, which would change nothing\n  found: token ids\n',
    ),
    "run --prompts: special of a message": (
        ("run", "ENGINE", "--chat", "--prompts", "message.jsonl"),
        'cannot use "special" at message.jsonl:1, which would change nothing\n  found: a message, whose text',
    ),
    "inspect --for": ((*GPU, "--for", "h100"), "expected --launches with --for\n"),
    "inspect --profile": ((*GPU, "--profile", "sm_90"), "expected --launches with --profile\n"),
    "inspect --program": ((*GPU, "--program", 1), "expected --launches with --program\n"),
    "inspect --tokens": ((*GPU, "--tokens", 1), "expected --launches with --tokens\n"),
    "inspect --context": ((*GPU, "--context", 1), "expected --launches with --context\n"),
    "inspect --for of a checkpoint": (("inspect", PICO, "--for", "h100"), "expected --launches with --for\n"),
    "inspect --accept-config": ((*GPU, "--accept-config", "k"), "expected a checkpoint with --accept-config\n"),
    "inspect --accept-config of launches": (
        (*GPU, "--launches", "--accept-config", "k"),
        "cannot use --accept-config, which would change nothing\n  found: --launches\n",
    ),
    "inspect --verbose": ((*GPU, "--launches", "--verbose"), "cannot use --verbose, which would change nothing\n"),
    "run --chat": (
        ("run", "ENGINE", "--prompts", "tokens.jsonl", "--chat"),
        'expected a "prompt" in tokens.jsonl with --chat\n  found: 1 other lines\n',
    ),
    "verify --rebuild-kernels": (("verify", "ENGINE", "--rebuild-kernels"), "expected a profile of a GPU in "),
    "verify --trust": (("verify", "ENGINE", "--trust", "any"), "expected a profile of a GPU in "),
    "verify --trust of the interpreter": (
        ("verify", "GPU ENGINE", "--simulate", "--trust", "digest"),
        "cannot use --trust, which would change nothing\n  found: --simulate, which",
    ),
    "verify --simulate": (("verify", "ENGINE", "--simulate"), "expected a profile of a GPU in "),
    "eval --trust": (("eval", "ENGINE", "--text", "text", "--trust", "digest"), "expected a profile of a GPU in "),
    "eval --window": (("eval", "ENGINE", "--text", "text", "--window", 513), "expected --window of at most 512"),
    "eval --gate": (
        ("eval", "ENGINE", "--text", "text", "--gate", "kl_mean<=1"),
        "expected --baseline with the gate kl_mean<=1\n",
    ),
    "bench --trust": (("bench", "ENGINE", "--trust", "digest"), "expected a profile of a GPU in "),
    "bench --batch": (("bench", "ENGINE", "--batch", 100), "expected --batch of at most 8, the engine's\n  found: 100"),
    "bench --gate": (("bench", "ENGINE", "--gate", "kl_mean<=1"), "cannot gate llmc bench by kl_mean\n"),
    "bench --new-tokens": (("bench", "ENGINE", "--new-tokens", 512), "of at most 512 together, the context"),
    "doctor --for": (("doctor", "--for", "h100"), "expected ENGINE with --for\n"),
    "doctor --measure": (("doctor", "ENGINE", "--for", "h100", "--measure"), "expected --measure without --for\n"),
}
"""Command lines that end with exit code 2, and what is said."""

SAID: dict[str, tuple[tuple[object, ...], str]] = {
    "build --verbose": (
        (*BUILD, "--verbose", "--json"),
        "llmc: --verbose changes nothing beside --json, which shows all of a build\n",
    ),
    "build --recipe: kv": (
        (*BUILD, "--recipe", "kv.yaml", "--target", "cpu"),
        "warning: kv fp8 changes nothing: targets cpu, of which none is a GPU's\n",
    ),
    "build --recipe: a rule": (
        (*BUILD, "--recipe", "hidden.yaml"),
        "warning: rule 'lm_head' (int8) changes nothing: later rules match all that it does\n",
    ),
    "build --accept-config of a key that is ignored": (
        (*BUILD, "--accept-config", "use_cache"),
        "warning: accepting use_cache changes nothing: it chooses what a transformers call returns\n",
    ),
    "plan --all": (
        ("plan", PICO, "--for", "h100", "--quantize", "int8", "--all", "--json"),
        "llmc: --all changes nothing beside --json, which has every candidate\n",
    ),
    "passes --max-batch": ((*PASSES, "--max-batch", 4), "llmc: --max-batch changes nothing: no pass depends on it\n"),
    "passes --recipe: kv": ((*PASSES, "--recipe", "kv.yaml", "--target", "cpu"), "warning: kv fp8 changes nothing: "),
    "run --top-k": ((*RUN, "--top-k", 5), f"llmc: --top-k changes nothing {GREEDY}"),
    "run --top-p": ((*RUN, "--top-p", 0.5), f"llmc: --top-p changes nothing {GREEDY}"),
    "run --min-p": ((*RUN, "--min-p", 0.5), f"llmc: --min-p changes nothing {GREEDY}"),
    "run --seed": ((*RUN, "--seed", 5, "--temperature", 0), f"llmc: --seed changes nothing {GREEDY}"),
    "run --seed --top-k": ((*RUN, "--seed", 5, "--top-k", 3), f"llmc: --seed, --top-k change nothing {GREEDY}"),
    "run --max-tokens": (
        ("run", "ENGINE", "def main(", "--max-tokens", 600, "--stop", "e"),
        "llmc: --max-tokens 600 is cut to 508, the room in the context of 512 tokens\n",
    ),
    "run --prompts: --max-tokens": (
        ("run", "ENGINE", "--prompts", "none.jsonl", "--max-tokens", 600),
        "llmc: --max-tokens 600 is cut to 511, the room in the context of 512 tokens\n",
    ),
    "run --prompts": (("run", "ENGINE", "--prompts", "none.jsonl"), "llmc: there are no prompts\n"),
    "run --prompts: top_k": (
        ("run", "ENGINE", "--prompts", "prompts.jsonl", "--max-tokens", 1),
        f'llmc: "top_k" changes nothing {GREEDY.strip()} (1 of 3 prompts)\n',
    ),
    "run --special": (
        ("run", "ENGINE", "--prompts", "tokens.jsonl", "--special", "--max-tokens", 1),
        "llmc: --special changes nothing: no prompt is a text\n",
    ),
    "inspect --verbose": (
        ("inspect", "ENGINE", "--verbose", "--json"),
        "llmc: --verbose changes nothing beside --json, which shows all of an engine\n",
    ),
}
"""Command lines that do their work, and what is said on stderr."""

ALWAYS: dict[str, set[str]] = {
    "plan": {"--for", "--goal", "--input", "--output", "--context", "--batch", "--quantize", "--kv"} | {"--chart"},
    "build": {"--output", "--quantize", "--target", "--max-batch", "--memory-limit", "--random-weights", "--dump"}
    | {"--max-shard-size"}  # a limit that is kept, as that of memory
    | {"--parallel"}  # profiles
    | {"--report", "--chat-template", "--force"},  # of an output that may be written anyway: as of rm and cp
    "recipes": set(),
    "families": set(),
    "passes": {
        "--quantize",
        "--target",
        "--parallel",
        "--max-context",
        "--recipe",
        "--accept-config",
        "--random-weights",
        "--dump",
    },
    "kernels": {"--sm", "--file", "--jobs", "--evidence"},
    "run": {"--temperature", "--repetition-penalty", "--presence-penalty", "--frequency-penalty", "--stop", "--profile"}
    | {"--verify"}
    | {"--image"}  # always refused: tests/e2e/numbers/families/test_vision.py
    | {"--threads"},  # on a GPU's profile: tests/unit/runtime/test_profiles.py
    "inspect": {"--launches"},
    "verify": {"--profile"},
    "eval": {
        "--text",
        "--tokens",
        "--jsonl",
        "--baseline",
        "--max-tokens",
        "--windows",
        "--format",
        "--profile",
        "--threads",
    },
    "bench": {"--prompt-tokens", "--repeat", "--format", "--profile", "--threads"},
    "doctor": set(),
    "tune": {"--output", "--profile", "--time-limit", "--force"},
    "cache list": set(),
    "cache du": set(),
    "cache rm": {"--all", "--older-than"},  # one of them, or names: tests/scripts/cli
}
"""Flags without a case above: they change something beside all other flags."""
EVERYWHERE = {"--json", "--debug"}


@pytest.fixture(scope="module")
def engines(pico_engine: PicoEngine, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    gpu = with_plans(pico_engine("int8"), tmp_path_factory.mktemp("no effect") / "gpu.llmc", 90)
    return {"ENGINE": pico_engine("int8"), "GPU ENGINE": gpu}


@pytest.fixture
def one(
    call: Call, engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[tuple[object, ...]], Outcome]:
    """Runs a command line of the tables in a folder with their files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    for name, text in {
        "text": "def f():\n",
        "rule.yaml": "version: 1\nquantize: {rules: [{match: model.layers.9.*, format: int8}]}\n",
        "kv.yaml": "version: 1\nkv: fp8\ntargets: [sm_90]\n",
        "hidden.yaml": "version: 1\nquantize: {rules: [{match: lm_head, format: int8}, {match: '*', format: int4}]}\n",
        "table.yaml": f'version: 2\nsm: 90\ngpu: "H"\ndriver: "13.0"\ndate: "2026-11-28"\nkernels: "{"0" * 64}"\n'
        'triton: "3"\nrows: []\n',
        "none.jsonl": "\n",
        "template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "prompts.jsonl": '{"prompt": "a"}\n{"prompt": "b", "top_k": 4}\n'
        '{"tokens": [5], "top_k": 4, "temperature": 1}\n',
        "tokens.jsonl": '{"tokens": [5]}\n',
        "special.jsonl": '{"prompt": "a", "special": true}\n{"tokens": [5], "special": true}\n',
        "message.jsonl": '{"prompt": "a", "special": true}\n',
    }.items():
        Path(name).write_text(text)
    return lambda command: call(*(engines.get(str(word), word) for word in command))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_nothing_is_refused(one: Callable[[tuple[object, ...]], Outcome], name: str):
    command, said = REFUSED[name]
    found = one(command)
    assert (found.code, found.out) == (2, ""), found.err
    assert said in found.err
    assert not Path("e.llmc").exists()


@pytest.mark.parametrize("name", SAID)
def test_or_it_is_said(one: Callable[[tuple[object, ...]], Outcome], name: str):
    command, said = SAID[name]
    found = one(command)
    assert found.code == 0, found.err
    assert found.err.count(said) == 1, found.err


def test_every_flag_has_a_case_or_always_changes_something():
    """A new flag: think of all that makes it idle, and put that in a table."""
    top: dict[str, Any] = typer.main.get_command(application()).commands  # type: ignore[attr-defined]
    commands = {name: one for name, one in top.items() if not hasattr(one, "commands")}
    groups = {name: one for name, one in top.items() if name not in commands}
    commands |= {f"{name} {inner}": one for name, group in groups.items() for inner, one in group.commands.items()}
    cases = {(words[0], word) for words in (name.split() for name in (*REFUSED, *SAID)) for word in words[1:]}
    for name, command in commands.items():
        flags = {option.opts[0] for option in command.params if option.param_type_name == "option"} - EVERYWHERE
        tested = {word.rstrip(":") for verb, word in cases if verb == name and word.startswith("--")}
        assert flags == tested | ALWAYS[name], name
    assert commands.keys() == ALWAYS.keys()


@pytest.mark.parametrize(
    "quiet",
    [
        (*RUN, "--top-k", 0, "--top-p", 1, "--min-p", 0),  # these are the values that cut nothing
        (*RUN, "--top-k", 5, "--seed", 1, "--temperature", 0.5),
        (*RUN, "--logprobs", 2, "--json"),
        (*RUN, "--logprobs", 0),
        (*RUN, "--special"),
        (*RUN, "--show-prompt", "--json"),
        (*RUN, "--threads", 1),
        ("run", "ENGINE", "--prompts", "prompts.jsonl", "--logprobs", 1, "--temperature", 1, "--max-tokens", 1),
        (*PASSES, "--activations", "none", "--kv", "none"),
        ("inspect", PICO, "--verbose", "--json"),
    ],
)
def test_what_changes_something_is_not_spoken_of(
    one: Callable[[tuple[object, ...]], Outcome], quiet: tuple[object, ...]
):
    found = one(quiet)
    assert found.code == 0, found.err
    assert "nothing" not in found.err and "cut" not in found.err


def test_settings_of_the_machine_are_not_spoken_of(
    one: Callable[[tuple[object, ...]], Outcome], monkeypatch: pytest.MonkeyPatch
):
    """They are set for all commands at once, and a flag that repeats one is one."""
    monkeypatch.setenv("LLMC_PROFILE", "cpu")
    monkeypatch.setenv("LLMC_THREADS", "1")
    assert one(("inspect", "ENGINE")).err == ""
    assert one(("inspect", "ENGINE", "--profile", "cpu")).err == ""
    assert one(("inspect", "ENGINE", "--profile", "h100")).code == 2


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"kv": "fp8"}, "cannot use kv fp8, which would change nothing"),
        ({"activations": "fp8", "quantize": "int8"}, "cannot use activations fp8, which would change nothing"),
        ({"activations": "fp8", "targets": ["h100"]}, "found: no weight that is quantized"),
    ],
)
def test_keywords_of_the_library(tmp_path: Path, keywords: Any, said: str):
    with pytest.raises(RecipeError, match=said):
        llmc.build(PICO, tmp_path / "e.llmc", **keywords)


def test_requests_of_the_library(engines: dict[str, Path]):
    with pytest.raises(RecipeError, match=r"expected max_batch from 1 to 8, .*\n  found: 100"):
        llmc.load(engines["ENGINE"], max_batch=100)
    with llmc.load(engines["ENGINE"], max_batch=8) as engine:
        with pytest.raises(RecipeError, match="cannot use special: a prompt of token ids has no text"):
            engine.generate([5, 6], special=True)
        assert engine.idle({"top_k": 5, "seed": 3, "min_p": None}) == ("seed", "top_k")
        assert engine.idle({"top_k": 5, "seed": 3, "temperature": 1.0}) == engine.idle({"top_k": 0, "top_p": 1.0}) == ()


def test_a_setting_of_a_recipe_is_a_warning_of_the_library(tmp_path: Path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        llmc.build(PICO, tmp_path / "e.llmc", Recipe(kv="fp8", targets=("sm_90",)), targets=["cpu"])
    said = "kv fp8 changes nothing: targets cpu, of which none is a GPU's"
    assert any(said in str(one.message) for one in caught)


def test_a_recipe_for_a_gpu_may_be_given_another_target():
    assert with_flags(Recipe(kv="fp8", targets=("sm_90",)), targets="cpu").kv == "fp8"
    assert Recipe(kv="fp8", targets=("cpu", "sm_90")).idle() == {}
    assert with_flags(None, kv="none", activations="none").idle() == {}
    rules = (QuantizeRule("lm_head", "int8"),)
    assert Recipe(activations="fp8", rules=rules, targets=("sm_90",)).idle() == {}


def test_a_default_of_the_model_is_a_temperature(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whether --top-k changes something is known once the model's own temperature is."""
    shutil.copytree(PICO, tmp_path / "c")
    edit(tmp_path / "c" / "generation_config.json", lambda config: config.update(do_sample=True))
    with pytest.warns(UserWarning, match="no chat template"):
        path = llmc.build(tmp_path / "c", tmp_path / "e.llmc", quantize="int8")
    found = call("run", path, "x", "--max-tokens", 1, "--top-k", 5)
    assert found.code == 0 and "nothing" not in found.err
    assert "--top-k changes nothing" in call("run", path, "x", "--max-tokens", 1, "--top-k", 5, "--temperature", 0).err
    assert json.loads((tmp_path / "c" / "generation_config.json").read_text())["do_sample"]
