"""The page of a dump shows what each pass changed, folds what repeats, escapes names, and needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llmc.compiler.page import PAGE, write_page
from llmc.passes.rewrite.dump import Dump, PassReport, Step


def report(name: str, fired: int = 1, miss: str = "") -> PassReport:
    return PassReport("cpu", "profile", name, f"What <{name}> does.", fired, 0.5, miss)


def page(folder: Path, *steps: Step) -> str:
    dump = Dump(folder, {}, "0")
    dump.steps.extend(steps)
    write_page(dump)
    return (folder / PAGE).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = lambda data: parts.append(data)  # type: ignore[method-assign]
    parser.feed(page)
    return "".join(parts)


def graph(*nodes: str) -> str:
    return "\n".join(["g (float x, float W) => (float y) ", "{", *nodes, "}", ""])


def test_what_changed_is_shown_and_the_rest_is_folded(tmp_path: Path):
    same = [f"   a{i} = Add (a, b)" for i in range(30)]
    more = [f"   b{i} = Add (a, b)" for i in range(30)]
    before = graph(*same, "   y = Relu (a)", *more)
    after = graph(*same, "   z = Relu (a)", "   y = Swish (z)", *more)
    missed = Step(report("Two", 0, "why <b>"))
    shown = page(tmp_path, Step(None, before), Step(report("One"), after, "01 x.txt"), missed)
    assert "<del>-    y = Relu (a)</del>" in shown
    assert "<ins>+    z = Relu (a)</ins>\n<ins>+    y = Swish (z)</ins>" in shown
    assert "2 lines more, 1 less; <a href='01%20x.txt'>" in shown
    assert re.search(r"<i>\.\.\. 3\d equal lines</i>", shown)
    assert "a0 = Add" not in shown
    assert "href='#1'>One</a>" in shown
    assert "<td>Two<td>0<td>What &lt;Two&gt; does.<td>why &lt;b&gt;" in shown


def test_changes_of_equal_layers_are_shown_once(tmp_path: Path):
    layers = [(f"   s{i} = Add (a{i}, r)", f"   n{i} = RMSNormalization (s{i}, W)") for i in range(80)]
    before = graph(*(line for layer in layers for line in layer))
    after = graph(*(f"   n{i} = AddRMSNorm (a{i}, r, W)" for i in range(80)))
    shown = page(tmp_path, Step(None, before), Step(report("Fuse", 80), after, "1.txt"))
    assert shown.count("<ins>") < 10 and shown.count("<del>") < 10
    assert re.search(r"lines such as the last \d+, \d+ times more", shown)
    assert "80 lines more, 160 less" in shown


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "'><img src=x onerror=y>", 'a"&amp;b'])
def test_names_are_text(tmp_path: Path, name: str):
    before, after = graph(f"   y = Relu ({name})"), graph(f"   y = Swish ({name})")
    miss = report("Two", 0, f"at {name}")
    shown = page(tmp_path, Step(None, before), Step(report(name), after, f"{name}.txt".replace("/", "")), Step(miss))
    assert text_of(shown).count(name) >= 5
    tags = set(re.findall(r"<(\w+)", shown))
    assert not tags & {"script", "img", "amp"}


def test_the_page_needs_nothing_else_and_has_no_time(tmp_path: Path):
    steps = Step(None, graph("   y = Relu (x)")), Step(report("One"), graph("   y = Swish (x)"), "1.txt")
    first = page(tmp_path / "a", *steps)
    assert first == page(tmp_path / "b", *steps)
    assert not re.search(r"http|src=|<script|@import|url\(", first)
