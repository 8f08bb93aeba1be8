"""What a block cannot divide: the refusal proposes one rule for all layers, and following it is enough."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import CONFIG
from support.engines import build_engine, small_checkpoint

from llmc.compiler.divisible import require_storable
from llmc.compiler.families.config import parse_config
from llmc.compiler.families.spec import DecoderSpec
from llmc.quantize import FORMATS
from llmc.recipes.recipe import QuantizeRule, Recipe, load_recipe, with_flags
from llmc.runtime.dtypes import WEIGHT_FORMATS
from llmc.runtime.errors import Unsupported

FORMAT = st.sampled_from(("none", *WEIGHT_FORMATS))
GLOB = st.sampled_from(("lm_head", "*_proj", "*.mlp.*", "*[qkv]_proj", "model.layers.0.*", "*"))
SIZE = st.sampled_from((16, 24, 32, 48, 64, 128, 172, 256))


def spec(**config: object) -> DecoderSpec:
    text = json.dumps(CONFIG | {"num_hidden_layers": 3} | config)
    return parse_config(text.encode(), accept=(), what="config.json").decoder


def refusal(recipe: Recipe, model: DecoderSpec) -> str:
    """The message, or "" if all linears can be stored."""
    try:
        require_storable(recipe, model)
    except Unsupported as error:
        return str(error)
    return ""


def proposed(message: str) -> tuple[str, str]:
    """The glob of the proposed rule, and the file."""
    match = re.search(r"a recipe rule with `([^`]+): none`, as in this file[^\n]*\n(.*)", message, re.DOTALL)
    assert match, message
    return match[1], "".join(line.removeprefix("    ") + "\n" for line in match[2].splitlines())


@settings(max_examples=300, deadline=None)
@given(SIZE, SIZE, SIZE, st.booleans(), FORMAT, st.lists(st.builds(QuantizeRule, GLOB, FORMAT), max_size=3))
def test_the_proposal_is_enough(
    tmp_path_factory: pytest.TempPathFactory,
    hidden: int,
    inner: int,
    head: int,
    tied: bool,
    default: str,
    rules: list[QuantizeRule],
) -> None:
    model = spec(hidden_size=hidden, intermediate_size=inner, head_dim=head, tie_word_embeddings=tied)
    recipe = Recipe(default_format=default, rules=tuple(rules), max_batch=3)
    fails = {
        name
        for name, shape in model.linears().items()
        if (f := recipe.format_of(name)) != "none" and FORMATS[f].check(*shape)
    }
    message = refusal(recipe, model)
    assert bool(message) == bool(fails)
    if message:
        glob, text = proposed(message)
        path = tmp_path_factory.mktemp("r") / "r.yaml"
        path.write_text(text)
        followed = load_recipe(str(path))
        appended = Recipe(default_format=default, rules=(*rules, QuantizeRule(glob, "none")))
        assert refusal(followed, model) == refusal(appended, model) == ""
        assert followed.max_batch == 3 and len(followed.rules) == len(rules) + 1
        assert all(fnmatchcase(name, glob) for name in fails)


@settings(max_examples=300, deadline=None)
@given(SIZE, SIZE, SIZE, st.booleans(), st.sampled_from(WEIGHT_FORMATS))
def test_the_rule_alone_is_enough_for_who_gave_a_flag(
    hidden: int, inner: int, head: int, tied: bool, quantize: str
) -> None:
    """The rule for the head that --quantize int4 has is not in the user's hands, so it is not counted on."""
    model = spec(hidden_size=hidden, intermediate_size=inner, head_dim=head, tie_word_embeddings=tied)
    if message := refusal(with_flags(None, quantize=quantize), model):
        glob, _ = proposed(message)
        alone = Recipe(default_format=quantize, rules=(QuantizeRule(glob, "none"),))
        assert refusal(alone, model) == ""
        block = FORMATS[quantize].block or 1
        left = [name for name, shape in model.linears().items() if fnmatchcase(name, glob) and shape[1] % block == 0]
        assert left == [], "the rule leaves no linear as it is that could be stored"


@pytest.mark.parametrize(
    ("config", "quantize", "rule", "kinds"),
    [
        (
            {"hidden_size": 64, "intermediate_size": 172},
            "int4",
            "model.layers.*.mlp.down_proj",
            "model.layers.*.mlp.down_proj",
        ),
        ({"hidden_size": 48, "head_dim": 32, "intermediate_size": 128}, "int8", "*[ekmpqv]?????", "lm_head"),
        ({"hidden_size": 64, "head_dim": 24, "intermediate_size": 128}, "nvfp4", "", ""),
        (
            {"hidden_size": 64, "head_dim": 20, "intermediate_size": 128},
            "nvfp4",
            "model.layers.*.self_attn.o_proj",
            "o_proj",
        ),
        ({"hidden_size": 64, "head_dim": 20, "intermediate_size": 172}, "mxfp4", "*[no]_proj", "o_proj"),
        ({"hidden_size": 64, "head_dim": 32, "intermediate_size": 128}, "int4-g128", "*[ekmopqv]?????", "o_proj"),
        ({"hidden_size": 8, "head_dim": 4, "intermediate_size": 12}, "int8", "*", "lm_head"),
    ],
)
def test_one_rule_for_all_layers_and_kinds(config: dict[str, object], quantize: str, rule: str, kinds: str) -> None:
    message = refusal(with_flags(None, quantize=quantize), spec(**config))
    if not rule:
        assert message == ""
        return
    glob, _ = proposed(message)
    assert glob == rule
    assert kinds in message.splitlines()[0]


def test_a_build_that_follows(tmp_path: Path) -> None:
    source = small_checkpoint(tmp_path / "c", tokenizer=False, hidden_size=72, head_dim=20, intermediate_size=172)
    with pytest.raises(Unsupported) as caught:
        build_engine(source, tmp_path / "e.llmc", with_flags(None, quantize="int4"))
    (tmp_path / "r.yaml").write_text(proposed(str(caught.value))[1])
    assert build_engine(source, tmp_path / "e.llmc", load_recipe(str(tmp_path / "r.yaml"))).path.exists()
