"""The engines that a command judges: their facts before one is loaded, and as many of them open as memory holds."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TypeVar

from ...runtime.engine_file.manifest import Manifest, Profile
from ...runtime.engine_file.ranks import split_of
from ...runtime.errors import RecipeError, ResourceError
from ..common import console

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Subject:
    """An engine file, and the profile that runs it here."""

    path: str
    bytes: int
    manifest: Manifest
    profile: str
    step_bytes: int
    """Weights that a step reads, all ranks together."""
    template: str | None = None
    """The source of its chat template."""

    @property
    def limits(self) -> Profile:
        """The profile's facts, its largest context and batch among them."""
        return self.manifest.profiles[self.profile]

    @property
    def stages(self) -> int:
        """Pipeline stages, for each of which a step is cut into one more group of sequences."""
        return split_of(self.limits, self.path).pp

    @property
    def formats(self) -> dict[str, int]:
        """Modules of each weight format; empty if nothing is quantized."""
        return dict(sorted(Counter(self.manifest.formats.values()).items()))


def subject(path: str, profile: str | None) -> Subject:
    """Read an engine's header and choose its profile, as `load` will.

    Raises:
        EngineError: it is damaged, or has no such profile.
        ResourceError: no profile fits this machine.
    """
    from ...runtime.engine_file.file import EngineFile
    from ...runtime.load import template_of
    from ...runtime.profiles import choose
    from ...runtime.ranks.facts import facts_of_ranks

    with EngineFile.open(path) as engine:
        chosen, _ = choose(engine, profile)
        ranks = facts_of_ranks(engine, chosen)
        step = sum(one.step for one in ranks) if ranks else int(engine.profile(chosen).needs.get("step_bytes", 0))
        return Subject(path, engine.file_bytes, engine.manifest, chosen, step, template_of(engine)[1])


def demand_one_tokenizer(subjects: Sequence[Subject], *, messages: bool = False) -> None:
    """Check that all engines read the same tokens, also of `messages`.

    Raises:
        RecipeError: two differ in tokenizer.json, in the id of BOS, or in the chat template that messages need.
    """
    first = subjects[0]
    asked: list[tuple[str, Callable[[Subject], object]]] = [
        ("tokenizer.json", _tokenizer),
        ("id of BOS", lambda one: one.manifest.model.bos),
        *([("chat template", lambda one: one.template)] if messages else ()),
    ]
    for other in subjects[1:]:
        for name, of in asked:
            if of(other) != of(first):
                raise RecipeError(
                    f"expected engines with one tokenizer, not {first.path} and {other.path}", found=f"another {name}"
                )


def _tokenizer(one: Subject) -> str | None:
    return one.manifest.checkpoint.files.get("tokenizer.json")


def groups(
    subjects: Sequence[Subject], load: Callable[[Subject], AbstractContextManager[Loaded]]
) -> Generator[list[Loaded]]:
    """All engines open together, else in as few groups as memory allows; a group is closed before the next one opens.

    Raises:
        ResourceError: one engine alone has too little memory.
    """
    left = deque(subjects)
    while left:
        with ExitStack() as stack:
            group: list[Loaded] = []
            while left:
                try:
                    group.append(stack.enter_context(load(left[0])))
                except ResourceError as error:
                    if not group:
                        raise
                    console.note(f"llmc: {left[0].path} waits until the engines before it are done: {error.asked}")
                    break
                left.popleft()
            yield group
