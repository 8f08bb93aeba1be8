"""The frontier of a machine holds what nothing beats, and its picture shows it."""

from __future__ import annotations

import xml.etree.ElementTree as xml

from hypothesis import given
from hypothesis import strategies as some

from llmc.compiler.deploy.frontier import Place, frontier, places
from llmc.compiler.deploy.picture import MARK, picture
from llmc.compiler.planner.candidates import Candidate, Needs
from llmc.compiler.planner.serve import Served
from llmc.recipes.machines.table import machine_named
from llmc.recipes.recipe import Recipe
from llmc.runtime.engine_file.split import Split

MACHINE = machine_named("4xh200")
TP2 = Split(2)
SVG = "{http://www.w3.org/2000/svg}"


def place(tpot: float, decode: float, split: Split = TP2, sequences: int = 1) -> Place:
    point = Served(sequences, tpot, 0.1, decode, decode, {"memory": 1.0})
    recipe = Recipe(default_format="fp8", targets=("sm_90",))
    return Place(Candidate(MACHINE, recipe, split, Needs(1, 1, 1), 100, 8, 8.0, (point,)), point)


speeds = some.floats(1e-3, 1e3)
found = some.lists(some.builds(place, speeds, speeds), min_size=1, max_size=30)


@given(found)
def test_each_place_is_on_the_frontier_or_beaten(given: list[Place]):
    line = frontier(given)
    for one in given:
        beaten = [other for other in given if other.user >= one.user and other.machine >= one.machine and other != one]
        on_it = any((each.user, each.machine) == (one.user, one.machine) for each in line)
        better = [other for other in beaten if (other.user, other.machine) != (one.user, one.machine)]
        assert on_it == (not better)
    assert [one.user for one in line] == sorted((one.user for one in line), reverse=True)
    assert len({(one.user, one.machine) for one in line}) == len(line)


def test_copies_add_up():
    """Two copies of tp2 on four GPUs: a request is as fast, the machine twice as fast."""
    one = place(0.02, 100.0, sequences=3)
    assert (one.user, one.machine, one.requests) == (50.0, 200.0, 6)
    assert [*places([one.candidate], MACHINE)] == [one]
    assert [*places([one.candidate], machine_named("2xh200"))] == []


def test_the_picture():
    given = [place(0.01 * n, 40.0 * n, Split(*((4, 1), (2, 2))[n % 2]), n) for n in range(1, 9)]
    given += [place(0.5, 3.0, Split(1, 4))]
    line = frontier(given)
    text = picture(given, line, 'a<b & "c".json')
    assert text.startswith(MARK) and text == picture(given, line, 'a<b & "c".json')
    root = xml.fromstring(text)
    (drawn,) = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, one.split(","))) for one in drawn.attrib["points"].split()]
    assert len(points) == len(line) == 8
    assert [x for x, _ in points] == sorted((x for x, _ in points), reverse=True)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)  # SVG counts from the top
    titled = [one for one in root.iter(f"{SVG}circle") if one.find(f"{SVG}title") is not None]
    assert len(titled) == len(given)
    assert all(90 <= float(one.attrib["cx"]) <= 740 and 60 <= float(one.attrib["cy"]) <= 530 for one in titled)
    words = [one.text for one in root.iter(f"{SVG}text")]
    assert 'a<b & "c".json' in words and "other splits" in words and "frontier" in words
    assert "tokens/s of one request (1 / time per token)" in words and "generated tokens/s of 4xh200" in words
    assert {one.candidate.split.name for one in line} <= {*words}
