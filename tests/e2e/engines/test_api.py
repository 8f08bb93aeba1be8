"""The Python API takes as much care as the command line: a wrong argument is an LlmcError, whatever it is."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.engines import PicoEngine
from support.paths import PICO

import llmc
from llmc.recipes.flags import BuildFlags
from llmc.recipes.recipe import QuantizeRule, Recipe, load_recipe, with_flags
from llmc.runtime.engine import Engine
from llmc.runtime.sampling.params import SamplingOptions

WRONG: tuple[Any, ...] = (
    None, True, -1, 3, 2.5, float("nan"), 10**30, "", "text", "a,b", b"bytes", Path("p"), object, object(),
    [], [None], ["text"], [["text"]], [2.5], {}, {"a": 1}, [{}], [{"role": "user"}], (), {3}, range(0), 1j,
)  # fmt: skip
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def path(pico_engine: PicoEngine) -> Path:
    return pico_engine("int8")


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with llmc.load(path) as loaded:
        loaded._chat_source = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}"
        yield loaded


def outcome(function: Any, *given: Any, **named: Any) -> str:
    """ "" or the error of a call that may work or be refused; any other exception is a failure."""
    try:
        result = function(*given, **named)
    except llmc.LlmcError as error:
        return str(error)
    if isinstance(result, Engine):
        result.close()
    return ""


BUILD = [*inspect.signature(llmc.build).parameters][:-1]
LOAD = [*inspect.signature(llmc.load).parameters]


@pytest.mark.parametrize("name", [*BUILD, *BuildFlags.__annotations__])
def test_build_refuses_what_it_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """The output's folder is missing, which is refused after the types: so nothing is built."""
    monkeypatch.chdir(tmp_path)
    for wrong in WRONG:
        given = {"checkpoint": PICO, "output": tmp_path / "none" / "x.llmc", "max_batch": 2, name: wrong}
        if name == "output":
            given["checkpoint"] = tmp_path / "absent"
        assert outcome(llmc.build, **given), wrong


@pytest.mark.parametrize("name", LOAD)
def test_load_refuses_what_it_cannot_take(path: Path, name: str):
    for wrong in WRONG:
        outcome(llmc.load, **{"path": path, name: wrong})


CALLS: dict[str, tuple[tuple[Any, ...], tuple[str, ...]]] = {
    "generate": (("x",), ()),
    "stream": (("x",), ()),
    "chat": ((MESSAGES,), ("tools",)),
    "stream_chat": ((MESSAGES,), ("tools",)),
    "encode_chat": ((MESSAGES,), ("tools",)),
    "fit_chat": ((MESSAGES,), ("max_tokens",)),
    "check_options": ((), ()),
    "idle": (({},), ()),
    "logits": (([1],), ()),
    "cancel": ((None,), ()),
    "close": ((), ()),
}
"""Public methods of an engine, with arguments that they take, and names of others."""
OPTIONS = tuple(SamplingOptions.__annotations__)


def test_the_table_of_calls_is_whole():
    public = {name for name, one in vars(Engine).items() if inspect.isfunction(one) and not name.startswith("_")}
    assert public == set(CALLS)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda one: repr(one).partition(" at ")[0])
def test_methods_refuse_what_they_cannot_take(engine: Engine, wrong: Any):
    for name, (given, more) in CALLS.items():
        if name == "close":
            continue
        method = getattr(engine, name)
        bounded = {"max_tokens": 1} if "options" in inspect.signature(method).parameters and name != "idle" else {}
        outcome(method, wrong, **bounded)
        for option in more:
            outcome(method, *given, **{**bounded, option: wrong})
        for option in OPTIONS if bounded else ():
            outcome(method, *given, **{**bounded, option: wrong})
    for method in (engine.tokenizer.encode, engine.tokenizer.decode, engine.tokenizer.token_to_id):
        outcome(method, wrong)


def test_unknown_keywords_are_refused_with_the_nearest_name(engine: Engine, path: Path, tmp_path: Path):
    cases = [
        (llmc.build, (PICO, tmp_path / "x.llmc"), "quantise", "quantize"),
        (llmc.build, (PICO, tmp_path / "x.llmc"), "target", "targets"),
        (llmc.build, (PICO, tmp_path / "x.llmc"), "memory", "memory_limit"),
        (llmc.load, (path,), "thread", "threads"),
        (llmc.load, (path,), "maxbatch", "max_batch"),
        (engine.generate, ("x",), "max_new_tokens", "max_tokens"),
        (engine.stream, ("x",), "temprature", "temperature"),
        (engine.chat, (MESSAGES,), "tool", "tools"),
        (engine.stream_chat, (MESSAGES,), "topk", "top_k"),
        (engine.encode_chat, (MESSAGES,), "tool", "tools"),
        (engine.logits, ([1],), "token_id", "token_ids"),
        (engine.cancel, (), "streams", "stream"),
    ]
    for function, given, wrong, right in cases:
        found = outcome(function, *given, **{wrong: 2})
        assert found.startswith(f"expected only known options of {function.__name__}()")
        assert f"'{wrong}' (did you mean '{right}'?)" in found
    assert "known: path, profile, threads" in outcome(llmc.load, path, colour=1)
    assert outcome(llmc.load).startswith("cannot call load()\n  found: missing a required argument: 'path'")
    assert outcome(engine.close, 1).startswith("cannot call close()\n  found: too many positional arguments")


def test_messages_and_texts_in_the_wrong_method_name_the_right_one(engine: Engine):
    several = (engine.generate, [MESSAGES, MESSAGES])
    for method, given in [
        (engine.stream, MESSAGES),
        (engine.generate, MESSAGES),
        (engine.stream, MESSAGES[0]),
        several,
    ]:
        found = outcome(method, given)
        assert found.startswith("cannot read messages as a prompt") and "engine.chat(messages)" in found
    assert "try: engine.tokenizer.encode(text)" in outcome(engine.logits, "text")
    assert "found: PosixPath('p') (PosixPath)" in outcome(engine.generate, Path("p"))


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (llmc.build, {"checkpoint": 3}, "expected checkpoint as a path\n  found: 3 (int)"),
        (llmc.build, {"checkpoint": None}, "expected checkpoint as a path\n  found: None (NoneType)"),
        (llmc.build, {"checkpoint": b"c"}, "expected checkpoint as a path\n  found: b'c' (bytes)"),
        (llmc.build, {"output": None}, "expected output as a path\n  found: None (NoneType)"),
        (llmc.build, {"recipe": 8}, "expected recipe as a path\n  found: 8 (int)"),
        (llmc.build, {"quantize": 4}, "expected quantize as a text\n  found: 4 (int)"),
        (llmc.build, {"targets": 3}, "expected targets as a list\n  found: 3 (int)"),
        (llmc.build, {"targets": ["cpu", 90]}, "expected each of targets as a text\n  found: 90 (int)"),
        (llmc.build, {"max_batch": "8"}, "expected max_batch as a whole number\n  found: '8' (str)"),
        (llmc.build, {"max_context": True}, "expected max_context as a whole number\n  found: True (bool)"),
        (llmc.build, {"random_weights": 1.0}, "expected random_weights as a whole number\n  found: 1.0 (float)"),
        (llmc.build, {"tactics": {"a": 1}}, "expected tactics as a list\n  found: {'a': 1} (dict)"),
        (llmc.build, {"force": "no"}, "expected force as true or false\n  found: 'no' (str)"),
        (llmc.build, {"chat_template": 3}, "expected chat_template as jinja's text or a Path\n  found: 3 (int)"),
        (llmc.load, {"chat_template": b"x"}, "expected chat_template as jinja's text or a Path\n  found: b'x' (bytes)"),
        (llmc.load, {"path": None}, "expected engine as a path\n  found: None (NoneType)"),
        (llmc.load, {"profile": 3}, "expected profile as a text\n  found: 3 (int)"),
        (llmc.load, {"threads": "2"}, "expected threads as a whole number\n  found: '2' (str)"),
        (llmc.load, {"max_batch": 2.0}, "expected max_batch as a whole number\n  found: 2.0 (float)"),
    ],
)
def test_a_wrong_type_is_named(path: Path, tmp_path: Path, function: Any, given: dict[str, Any], message: str):
    usual = {"path": path} if function is llmc.load else {"checkpoint": PICO, "output": tmp_path / "x.llmc"}
    assert outcome(function, **{**usual, **given}).startswith(message)
    assert not (tmp_path / "x.llmc").exists()


def test_one_text_is_one_name_and_not_its_letters(tmp_path: Path):
    assert Recipe(targets="cpu").targets == with_flags(None, targets="cpu").targets == ("cpu",)  # type: ignore[arg-type]
    assert with_flags(None, targets="cpu, h100").targets == ("cpu", "sm_90")
    assert with_flags(None, targets=["cpu", "h100"]).targets == ("cpu", "sm_90")
    asked = (PICO, tmp_path / "x.llmc")
    assert outcome(llmc.build, *asked, accept_config="abc").startswith("cannot apply --accept-config abc\n")
    absent = tmp_path / "absent.yaml"
    for tactics in (absent, str(absent), [absent]):
        assert outcome(llmc.build, *asked, tactics=tactics).startswith(f"cannot open {absent}")


def test_a_mapping_is_a_recipe(tmp_path: Path):
    text = "version: 1\nextends: cpu-int4\nquantize:\n  rules: [{match: 'a.*', format: none}]\nmax_batch: 3\n"
    (tmp_path / "r.yaml").write_text(text)
    given = {
        "extends": "cpu-int4",
        "quantize": {"rules": [{"match": "a.*", "format": "none"}]},
        "max_batch": 3,
    }
    assert with_flags(given) == with_flags({"version": 1, **given}) == load_recipe(str(tmp_path / "r.yaml"))
    assert with_flags({}) == Recipe()
    assert "did you mean 'quantize'" in outcome(with_flags, {"quantise": {}})
    assert outcome(with_flags, {"quantize": "int8"}).startswith("cannot read recipe:3:14: expected keys and values")
    assert outcome(with_flags, {"max_batch": object()}).startswith("expected a recipe as keys and values")
    assert outcome(Recipe, rules=[("a", "int8")]).startswith("expected rules as a tuple of QuantizeRule")
    assert outcome(QuantizeRule, 3, "int8").startswith("expected a rule's match as a text")


def test_what_the_system_refuses_is_an_error_of_llmc(tmp_path: Path):
    long = "x" * 5000
    for call in (
        partial(llmc.build, long, tmp_path / "x.llmc"),
        partial(llmc.build, PICO, long),
        partial(llmc.load, long),
    ):
        with pytest.raises(llmc.LlmcError):
            call()


def test_an_engine_says_what_it_is(engine: Engine, path: Path):
    info = engine.info
    assert isinstance(info, llmc.EngineInfo)
    assert (info.architecture, info.family, info.parameters) == ("LlamaForCausalLM", "llama", 7_344_384)
    assert (info.name, info.hub_id, info.revision, info.licence) == ("pico-python", None, None, None)
    assert info.recipe == "cpu-int8"
    assert (info.layers, info.hidden_size, info.vocab_size) == (8, 256, engine.vocab_size)
    assert (info.dtype, info.formats) == ("bfloat16", {"int8": 57})
    assert (info.profile, info.target, info.profiles) == (engine.profile, "cpu", ("cpu",))
    assert (info.max_context, info.max_batch, info.chat) == (engine.max_context, 8, False)
    assert info.path == path and len(info.content_digest) == 64
    shown = (
        "pico-python, LlamaForCausalLM, 7,344,384 parameters, int8, profile cpu, context 512, batch 8, no chat template"
    )
    assert repr(engine) == f"<llmc.Engine {shown}>"
    with llmc.load(path, max_batch=2) as small:
        assert small.info.max_batch == 2


def test_every_build_of_a_loop_warns_at_the_callers_line(tmp_path: Path):
    """Python shows equal warnings of a line once, so the second checkpoint without a template went unnoticed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for name in ("a.llmc", "b.llmc"):
            llmc.build(PICO, tmp_path / name, quantize="int8")
    said = "no chat template: `llmc run --chat` will need --chat-template"
    assert [str(one.message) for one in caught] == [f"{tmp_path / name}: {said}" for name in ("a.llmc", "b.llmc")]
    assert {one.filename for one in caught} == {__file__}


def test_notes_of_loading_are_warnings(path: Path, monkeypatch: pytest.MonkeyPatch):
    from llmc.runtime.cpu.executor import CpuExecutor

    usual = CpuExecutor.__init__

    def noting(self: CpuExecutor, *given: Any, **named: Any) -> None:
        usual(self, *given, **named)
        self.notes = ("said while loading",)

    monkeypatch.setattr(CpuExecutor, "__init__", noting)
    with pytest.warns(UserWarning, match=f"{path}: said while loading") as caught, llmc.load(path):
        pass
    assert [one.filename for one in caught] == [__file__]


def test_results_of_a_mapping_recipe_equal_those_of_its_flags(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = llmc.build(PICO, tmp_path / "a.llmc", {"quantize": {"default": "int8"}})
        other = llmc.build(str(PICO), str(tmp_path / "b.llmc"), quantize="int8", targets="cpu")
    assert one.read_bytes() == other.read_bytes()
