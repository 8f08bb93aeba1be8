"""What the caches are said to hold, which names choose an engine, and that nothing but llmc's own files is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.engines import small_checkpoint

from llmc.compiler.cache import find as cache
from llmc.compiler.cache import listing
from llmc.compiler.cache.find import Found, Wish
from llmc.compiler.cache.remembered import Remembered
from llmc.compiler.cache.store import Store
from llmc.compiler.targets.cuda.cubins.cache import KernelCache
from llmc.runtime.engine_file.file import EngineFile
from llmc.runtime.errors import RecipeError, ResourceError
from llmc.runtime.progress import NO_PROGRESS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DAY = 86_400.0


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of all caches."""
    return tmp_path / "cache"


@pytest.fixture
def store(whole: Path) -> Store:
    return Store(whole)


def used(where: Path, quantize: str = "int8", days: float = 0) -> Found:
    """An engine of a checkpoint, used so many days ago."""
    found = cache.find(str(where), Wish.of(None, quantize=quantize))
    found.build(NO_PROGRESS, lambda: None)
    found.used()
    os.utime(found.path, (time.time() - days * DAY, time.time() - days * DAY))
    return found


def test_engines_are_listed_with_what_they_are(store: Store, tmp_path: Path):
    plain = small_checkpoint(tmp_path / "plain", tokenizer=False)
    hub = small_checkpoint(tmp_path / "models--org--name" / "snapshots" / COMMIT, tokenizer=False)
    (hub / "README.md").write_text("---\nlicense: mit\n---\n")
    old, new = used(plain, days=3), used(hub, "int4", days=1)
    found = listing.engines(store)
    assert [entry.key for entry in found] == [new.key, old.key]
    assert [(e.model, e.hub_id, e.revision, e.licence) for e in found] == [
        ("name", "org/name", COMMIT, "mit"),
        ("LlamaForCausalLM", None, None, None),
    ]
    assert [(e.recipe, e.targets, e.damage) for e in found] == [("cpu-int4", ("cpu",), ""), ("cpu-int8", ("cpu",), "")]
    assert [entry.sources for entry in found] == [(str(hub),), (str(plain),)]
    assert [entry.bytes for entry in found] == [new.path.stat().st_size, old.path.stat().st_size]
    assert 2.9 * DAY < time.time() - found[1].last_used < 3.1 * DAY


def test_a_run_is_a_use(store: Store, tmp_path: Path):
    found = used(small_checkpoint(tmp_path / "c", tokenizer=False), days=3)
    found.used()
    assert time.time() - listing.engines(store)[0].last_used < 60


def test_a_damaged_engine_is_listed_and_can_be_removed(store: Store, tmp_path: Path):
    found = used(small_checkpoint(tmp_path / "c", tokenizer=False))
    os.truncate(found.path, 100)
    (entry,) = listing.engines(store)
    assert (entry.model, entry.bytes) == (None, 100) and entry.damage.startswith("expected a header of")
    assert listing.remove(store, listing.select([entry], [found.key])) == 100
    assert listing.engines(store) == []


def entry(key: str, model: str, hub_id: str | None = None, source: str = "/m") -> listing.Entry:
    return listing.Entry(key.ljust(32, "0"), Path("x"), 1, 0.0, (source,), model=model, hub_id=hub_id)


ENTRIES = [entry("abcd1", "One", "org/One"), entry("abcd2", "One", source="/n"), entry("beef", "abcd")]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["abcd1"], [0]),
        (["abcd1".ljust(32, "0")], [0]),
        (["org/One"], [0]),
        (["One"], [0, 1]),
        (["One", "abcd1", "beef"], [0, 1, 2]),
        (["/n"], [1]),
        (["/n/../m"], [0, 2]),
    ],
)
def test_names_of_engines(names: list[str], chosen: list[int]):
    assert listing.select(ENTRIES, names) == [ENTRIES[index] for index in chosen]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("abcd", f"expected the key of one engine, not 'abcd'\n  found: {ENTRIES[0].key}, {ENTRIES[1].key}"),
        ("bee", "cannot find 'bee' in the cache of engines\n  try: a name of llmc cache list"),
        ("org/on", "cannot find 'org/on' in the cache of engines (did you mean 'org/One'?)"),
        ("", "cannot find '' in the cache of engines"),
    ],
)
def test_names_that_choose_no_engine(name: str, said: str):
    with pytest.raises(RecipeError) as caught:
        listing.select(ENTRIES, ["One", name])
    assert said in str(caught.value)


def test_an_engine_that_runs_goes_on_after_its_removal(store: Store, tmp_path: Path):
    found = used(small_checkpoint(tmp_path / "c", tokenizer=False))
    whole = found.path.read_bytes()
    with EngineFile.open(found.path) as running:
        assert listing.remove(store, listing.engines(store)) == len(whole)
        assert not found.path.exists()
        assert all(running.tensor(name).size for name in running.tensors)
        running.check_all()


def test_records_go_with_the_last_engine_of_a_checkpoint(store: Store, tmp_path: Path):
    where = small_checkpoint(tmp_path / "c", tokenizer=False)
    first, second = used(where), used(where, "int4")
    records = Remembered(store.cache)
    assert records.record(where).engines == (first.key, second.key)
    listing.remove(store, listing.select(listing.engines(store), [first.key]))
    assert records.record(where).engines == (second.key,)
    listing.remove(store, listing.engines(store))
    assert [*records.all()] == [] and not cache.was_built(str(where))


def fill(folder: Path) -> dict[str, bytes]:
    """Files of llmc's other caches, and files of somebody else with nearly the same names."""
    kernels = KernelCache.default()
    assert kernels.folder == folder / "kernels"
    kernels.save("a" * 64, {"cubin": "x" * 1000})
    others = {
        "engines/notes.txt": b"1",
        f"engines/{'b' * 31}.llmc": b"2",
        f"engines/{'b' * 32}.llmc.bak": b"3",
        "engines/mine.llmc": b"4",
        "kernels/mine.cubin": b"5",
        f"kernels/{'c' * 63}": b"6",
        f"checkpoints/{'d' * 32}": b"no record",
        "checkpoints/readme": b"7",
        "other/file": b"8",
        "machine/mine.json": b"9",
    }
    for name, data in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return others


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_all_of_llmc_and_nothing_else(store: Store, whole: Path, tmp_path: Path):
    others = fill(whole)
    found = used(small_checkpoint(tmp_path / "c", tokenizer=False))
    killed = whole / "engines" / f".{found.key}.llmc.1234.0123456789abcdef"
    killed.write_bytes(b"half")
    half = whole / "kernels" / ".new-abc"
    half.write_bytes(b"x")
    os.utime(half, (1, 1))
    (whole / "kernels" / ".new-now").write_bytes(b"a process writes it")
    (whole / "machine" / f"{'e' * 16}.json").write_bytes(b"facts")
    kernel = (whole / "kernels" / ("a" * 64)).stat().st_size
    record = sum(path.stat().st_size for path, _ in Remembered(whole).all())
    counted = {kind.name: (kind.files, kind.bytes) for kind in listing.kinds(store)}
    assert counted == {
        "engines": (1, found.path.stat().st_size),
        "kernels": (1, kernel),
        "checkpoints": (1, record),
        "machines": (1, 5),
        "unfinished": (2, 5),
    }
    assert listing.remove(store, listing.engines(store)) == counted["engines"][1]
    gone = {kind.name: (kind.files, kind.bytes) for kind in listing.remove_rest(store)}
    assert gone == {**{name: counted[name] for name in ("kernels", "machines", "unfinished")}, "checkpoints": (0, 0)}
    assert files(whole) == {**others, "kernels/.new-now": b"a process writes it"}
    assert [kind.files for kind in listing.kinds(store)] == [0, 0, 0, 0, 0]


def test_a_build_that_runs_is_not_disturbed(store: Store, tmp_path: Path):
    where = small_checkpoint(tmp_path / "c", tokenizer=False)
    found = cache.find(str(where), Wish.of(None))
    with store.lock(found.key, lambda: None):
        listing.remove_rest(store)
        assert [path.name for path in store.unfinished()] == [f".{found.key}.lock"]


def test_a_pack_of_kernels_is_not_llmc_s_to_empty(store: Store, whole: Path):
    fill(whole)
    (whole / "kernels" / "tools.json").write_text('{"triton": "3", "ptxas": "V13"}')
    assert listing.kernels(store) == []
    listing.remove_rest(store)
    assert (whole / "kernels" / ("a" * 64)).exists()


def test_no_cache_holds_nothing(store: Store):
    assert listing.engines(store) == [] and listing.remove(store, []) == 0
    assert [kind.files for kind in listing.kinds(store)] == [0, 0, 0, 0, 0]
    assert [kind.files for kind in listing.remove_rest(store)] == [0, 0, 0, 0]


def test_a_folder_with_the_name_of_an_engine_is_none(store: Store, tmp_path: Path):
    found = used(small_checkpoint(tmp_path / "c", tokenizer=False))
    store.path("0" * len(found.key)).mkdir()
    assert store.engine_keys() == [found.key]


def test_what_can_be_removed_is_removed(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = small_checkpoint(tmp_path / "c", tokenizer=False)
    stuck, other = used(source), used(source, "int4")
    remove = store.remove

    def some(key: str) -> int:
        if key == stuck.key:
            raise ResourceError(f"cannot remove {key}")
        return remove(key)

    monkeypatch.setattr(store, "remove", some)
    with pytest.raises(ResourceError, match=f"cannot remove {stuck.key}"):
        listing.remove(store, listing.engines(store))
    assert stuck.path.exists() and not other.path.exists()
