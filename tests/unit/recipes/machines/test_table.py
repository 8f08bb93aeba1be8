"""The table of machines: names that find one, counts that do not exist, and what a file must have."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

from llmc.recipes.machines.table import ALONE, machine_named, machines, read_kind, read_link
from llmc.runtime.chips import CHIPS, GPUS
from llmc.runtime.errors import RecipeError

FOLDER = ROOT / "recipes" / "machines"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *((name, "8xh200") for name in ("8xh200", "8 x H200", "8XNVIDIA H200", "hgx-h200", "HGX H200", "h200 hgx")),
        *((name, "1xh100") for name in ("h100", "H100 SXM5", "1xh100", "NVIDIA H100 80GB HBM3")),
        ("3xh100", "3xh100"),
        ("2x RTX PRO 6000 Blackwell Server Edition", "2xrtxpro6000"),
        ("72xgb200", "72xgb200"),
        ("gb200-nvl72", "72xgb200"),
        ("GB200 NVL72", "72xgb200"),
        ("16xh200", "16xh200"),
        ("256xb200", "256xb200"),
        ("rtx4090", "1xrtx4090"),
    ],
)
def test_names_find_a_machine(name: str, found: str):
    assert machine_named(name).name == found


def test_a_cluster_is_whole_hosts():
    one, four = machine_named("8xh200"), machine_named("32xh200")
    assert (one.gpus, one.hosts, one.gpus_per_host, one.network) == (8, 1, 8, None)
    assert (four.gpus, four.hosts, four.gpus_per_host) == (32, 4, 8)
    assert four.network is not None and four.network.kind == "InfiniBand"
    assert one.dollars is not None and four.dollars == pytest.approx(4 * one.dollars)
    assert four.link_of(8) == one.link_of(8) == one.link
    assert four.link_of(16).kind == "InfiniBand"
    assert one.link.reached > four.link_of(16).reached * 0.8 > four.network.reached


def test_a_gpu_without_known_links_is_one():
    for name in set(GPUS) - {one.chip.name for one in machines()}:
        machine = machine_named(name)
        assert (machine.name, machine.link, machine.chip) == (f"1x{name}", ALONE, CHIPS[name])
        assert machine.link.seconds("all_reduce", 1 << 20, machine.gpus) == 0.0
        with pytest.raises(RecipeError, match=f"^cannot find the links between 2 {name}\n  found: machines with links"):
            machine_named(f"2x{name}")


@pytest.mark.parametrize(
    ("name", "asked", "more"),
    [
        ("9xh200", "cannot find a machine of 9 h200", "8 on each of up to 32 hosts\n  try: 8xh200 or 16xh200"),
        ("257xh200", "cannot find a machine of 257 h200", "try: 256xh200"),
        ("0xh100", "cannot find a machine of 0 h100", "try: 1xh100"),
        ("73xgb200", "cannot find a machine of 73 gb200", "found: a host has up to 72\n  try: 72xgb200"),
        ("16xa100", "cannot find a machine of 16 a100", "found: a host has up to 8\n  try: 8xa100"),
        ("8xh100pcie", "cannot find the figures of 'h100pcie'", "try: h100 or h200, of the same capability"),
        ("8xtpu", "cannot find chip 'tpu'", "try: one of a100"),
        ("8x", "cannot find chip '8x'", "try: one of a100"),
        ("", "cannot find chip ''", "try: one of a100"),
        ("9999999xh100", "cannot find chip", "try: one of a100"),
    ],
)
def test_names_that_find_none(name: str, asked: str, more: str):
    with pytest.raises(RecipeError) as refused:
        machine_named(name)
    assert refused.value.asked.startswith(asked)
    assert more in str(refused.value)


def test_the_table_has_every_size_once_and_each_finds_itself():
    names = [one.name for one in machines()]
    assert len(names) == len({*names}) > 25
    for one in machines():
        assert machine_named(one.name) == one
        assert one.gpus == one.hosts * one.gpus_per_host
        assert (one.network is None) == (one.hosts == 1)
        assert 0 < one.link.reached < one.link.bandwidth
    assert {"8xa100", "8xh100", "16xh100", "32xh200", "8xb200", "72xgb200", "1xrtxpro6000"} <= {*names}


def test_links_are_those_of_their_chips():
    """The chip table counts both directions of a link, the machines one."""
    for one in machines():
        assert one.chip.link == 2 * one.link.bandwidth, one.name


def test_the_files_of_the_table_are_named_by_their_sources():
    """That each figure has one is checked when a file is read: here, that it is an address, or names its document."""
    files = [*FOLDER.rglob("*.yaml")]
    assert len(files) >= 12
    for file in files:
        sources = re.findall(r"source: (?:>-\n)?\s*(.+)", file.read_text(encoding="utf-8"))
        assert sources
        for source in sources:
            assert re.search(r"https://|data sheet|NVIDIA|PCI Express", source), (file.name, source)


KIND = """\
chip: h100
gpus:
  value: 8
  source: a data sheet
sizes: [1, 8]
link: nvlink4
"""


def test_a_file_is_a_machine():
    kind = read_kind("k", KIND.encode())
    assert (kind.chip.name, kind.gpus, kind.sizes, kind.hosts, kind.dollars) == ("h100", 8, (1, 8), 1, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  source: a data sheet\n", "", r"k.yaml:3:3: expected 'source' here"),
        ("source: a data sheet", "sauce: me", r"k.yaml:4:3: unknown key 'sauce' \(did you mean 'source'\?\)"),
        ("a data sheet", "' '", r"k.yaml:4:11: expected where the figure comes from"),
        ("chip: h100", "chip: h101", r"k.yaml:1:7: expected a chip of a100"),
        ("value: 8", "value: 0", r"k.yaml:3:10: expected a number from 1 to 4096"),
        ("[1, 8]", "[1, 9]", r"k.yaml:5:12: expected 1 to 8"),
        ("nvlink4", "nvlink9", r"k.yaml:6:7: expected a link of infiniband-400"),
        ("nvlink4\n", "nvlink4\nnetwork: infiniband-400\n", r"k.yaml:1:1: expected 'network' and 'hosts' together"),
        ("nvlink4\n", "nvlink4\ndollars: {value: 3, source: x}\n", r"k.yaml:7:18: expected text, found the integer"),
        ("nvlink4\n", "nvlink4\ndollars: {value: 3.5, source: x}\n", r"k.yaml:7:18: expected dollars, such as \$2.99"),
        ("link: nvlink4\n", "", r"k.yaml:1:1: expected 'link' here"),
        ("sizes:", "size:", r"k.yaml:5:1: unknown key 'size' \(did you mean 'sizes'\?\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_machine_is_refused_at_its_place(old: str, new: str, message: str):
    assert KIND.count(old) == 1
    with pytest.raises(RecipeError, match=f"^cannot read {message}"):
        read_kind("k", KIND.replace(old, new).encode())


LINK = (FOLDER / "links" / "nvlink4.yaml").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 450GB", "value: 450X", "expected bytes of a second, such as 450GB"),
        ("value: 3.7us", "value: 3.7ns", "expected a time, such as 40ms, 200us"),
        ("    - start: 22us\n", "    - begin: 22us\n", "unknown key 'begin'"),
        ("kind: NVLink switch", "kind: ''", "expected what the link is"),
        ("  protocols:\n", "  protocols: []\n  other:\n", "unknown key 'other'"),
    ],
)
def test_a_file_that_is_no_link_is_refused_at_its_place(old: str, new: str, message: str):
    assert LINK.count(old) == 1
    with pytest.raises(RecipeError, match=rf"cannot read links/l\.yaml:\d+:\d+: {re.escape(message)}"):
        read_link("l", LINK.replace(old, new).encode())
