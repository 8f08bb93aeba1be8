"""The table of machines: reads `*.yaml`, and finds a machine by name, such as `8xh200` or `gb200-nvl72`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...runtime.chips import CHIPS, Chip
from ...runtime.cuda.names import chip_named
from ...runtime.errors import RecipeError
from ..strict_yaml import Document, Mapping
from .figures import count, dollars, keys, per_second, protocols, seconds, sourced_protocol
from .link import Link

_FOLDER = Path(__file__).resolve().parent
_LINKS = _FOLDER / "links"
_COUNTED = re.compile(r"\s*(\d{1,6})\s*[xX*]\s*(\S.*)")
_WORD = re.compile(r"[a-z0-9]+")
ALONE = Link("alone", "none", 0.0, 0.0, ())
"""The link of a GPU without others."""


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind that a plan may use."""

    name: str
    """Count and chip: "16xh200"."""
    chip: Chip
    gpus: int
    """GPUs of all hosts."""
    hosts: int
    gpus_per_host: int
    """GPUs that are used of each host, all joined by `link`. An NVL72 rack is one host here."""
    link: Link
    """Between GPUs of a host; ALONE if its GPUs have no known link."""
    network: Link | None
    """Between hosts, for each of their GPUs; None of one host."""
    dollars: float | None
    """List price of all GPUs for an hour; None if no public one was found."""

    def link_of(self, ranks: int) -> Link:
        """The link of a collective over `ranks` GPUs, which fill hosts one after another."""
        if self.network is None or ranks <= self.gpus_per_host:
            return self.link
        return self.link.between_hosts(self.network, self.gpus_per_host)


@dataclass(frozen=True)
class _Kind:
    """A file of the table."""

    name: str
    chip: Chip
    gpus: int
    """GPUs of a host."""
    sizes: tuple[int, ...]
    """Numbers of GPUs of one host that `machines` offers."""
    link: Link
    network: Link | None
    hosts: int
    """Largest number of hosts."""
    dollars: float | None
    """A GPU and hour."""

    def machine(self, gpus: int) -> Machine:
        per_host = min(gpus, self.gpus)
        hosts = gpus // per_host
        dollars = None if self.dollars is None else self.dollars * gpus
        network = self.network if hosts > 1 else None
        return Machine(f"{gpus}x{self.chip.name}", self.chip, gpus, hosts, per_host, self.link, network, dollars)

    def fitting(self, gpus: int) -> bool:
        return 1 <= gpus <= self.gpus or (gpus % self.gpus == 0 and 1 <= gpus // self.gpus <= self.hosts)


def machine_named(name: str) -> Machine:
    """The machine of this name: `8xh200`, `2x RTX PRO 6000` (a count and a GPU's name in any spelling), `h100` for one
    GPU, or a machine of the table as a whole, `hgx-h200`. More GPUs than a host has are whole hosts of a cluster.

    Raises:
        RecipeError: there is no such GPU, no such number of them, or no figures of the links between them.
        ResourceError: "native" on a machine without a GPU.
    """
    words = frozenset(_WORD.findall(name.lower()))
    for kind in _kinds():
        if frozenset(_WORD.findall(kind.name)) == words:
            return kind.machine(kind.gpus)
    counted = _COUNTED.fullmatch(name)
    many, chip = (int(counted[1]), chip_named(counted[2].strip())) if counted else (1, chip_named(name))
    kind = next((one for one in _kinds() if one.chip.name == chip.name), None)
    if kind is None:
        if many == 1:
            return Machine(f"1x{chip.name}", chip, 1, 1, 1, ALONE, None, None)
        known = ", ".join(one.chip.name for one in _kinds())
        asked = f"cannot find the links between {many} {chip.name}"
        raise RecipeError(asked, found=f"machines with links have {known}", fix=f"{chip.name}, one of them")
    if not kind.fitting(many):
        raise _no_such_count(kind, many)
    return kind.machine(many)


@cache
def machines() -> tuple[Machine, ...]:
    """Every machine of the table in its sizes: parts of a host, a host, clusters of 2 and 4 hosts; by file, then
    ascending."""
    found: list[Machine] = []
    for kind in _kinds():
        found += [kind.machine(size) for size in kind.sizes]
        found += [kind.machine(hosts * kind.gpus) for hosts in (2, 4) if hosts <= kind.hosts]
    return tuple(found)


def _no_such_count(kind: _Kind, asked: int) -> RecipeError:
    """A refusal that names the nearest counts which work, one on each side."""
    whole = [1, *(kind.gpus * hosts for hosts in range(1, kind.hosts + 1))]
    below, above = ([one for one in whole if one <= asked], [one for one in whole if one >= asked])
    near = [*below[-1:], *above[:1]]
    cluster = f", or {kind.gpus} on each of up to {kind.hosts} hosts" if kind.hosts > 1 else ""
    return RecipeError(
        f"cannot find a machine of {asked} {kind.chip.name}",
        found=f"a host has up to {kind.gpus}{cluster}",
        fix=" or ".join(f"{one}x{kind.chip.name}" for one in near),
    )


@cache
def _kinds() -> tuple[_Kind, ...]:
    return tuple(_kind(path) for path in sorted(_FOLDER.glob("*.yaml")))


def _kind(path: Path) -> _Kind:
    return read_kind(path.stem, path.read_bytes())


def read_kind(name: str, data: bytes) -> _Kind:
    """The machine of a file.

    Raises:
        RecipeError: it is not a machine; the message gives line, column and a caret.
    """
    top = Document(f"{name}.yaml", data, schema="recipes/machines/README.md").mapping()
    keys(top, ("chip", "gpus", "sizes", "link"), ("network", "hosts", "dollars"))
    chip = CHIPS[top["chip"].text(lambda text: "" if text in CHIPS else f"expected a chip of {', '.join(CHIPS)}")]
    if ("network" in top) != ("hosts" in top):
        raise top.error("expected 'network' and 'hosts' together")
    gpus = count(top, "gpus")
    sizes = tuple(
        item.integer(lambda size: "" if 1 <= size <= gpus else f"expected 1 to {gpus}") for item in top["sizes"].items()
    )
    return _Kind(
        name,
        chip,
        gpus,
        sizes,
        _link_named(top, "link"),
        _link_named(top, "network") if "network" in top else None,
        count(top, "hosts") if "hosts" in top else 1,
        dollars(top, "dollars") if "dollars" in top else None,
    )


def _link_named(top: Mapping, key: str) -> Link:
    known = sorted(path.stem for path in _LINKS.glob("*.yaml"))
    name = top[key].text(lambda text: "" if text in known else f"expected a link of {', '.join(known)}")
    return _link(name)


@cache
def _link(name: str) -> Link:
    return read_link(name, (_LINKS / f"{name}.yaml").read_bytes())


def read_link(name: str, data: bytes) -> Link:
    """The link of a file.

    Raises:
        RecipeError: it is not a link; the message gives line, column and a caret.
    """
    top = Document(f"links/{name}.yaml", data, schema="recipes/machines/README.md").mapping()
    keys(top, ("kind", "bandwidth", "send", "nccl"), ("direct",))
    kind = top["kind"].text(lambda text: "" if text else "expected what the link is")
    direct = sourced_protocol(top, "direct") if "direct" in top else None
    return Link(name, kind, per_second(top, "bandwidth"), seconds(top, "send"), protocols(top, "nccl"), direct)
