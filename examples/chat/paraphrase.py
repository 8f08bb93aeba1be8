"""Makes conversations about llmc from the pairs: other phrasings of each question, and errors of typing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
MOST_TURNS = 6
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Fact:
    """An answer, the texts that it must contain, the questions it answers, and names of what it is about."""

    topic: str
    answer: str
    expect: tuple[str, ...]
    questions: tuple[str, ...]
    about: tuple[str, ...]


@dataclass(frozen=True)
class Message:
    role: str
    content: str


def read_facts(folder: Path = HERE / "pairs") -> list[Fact]:
    """All facts, in the order of files and lines."""
    return [
        Fact(path.stem, one["answer"], *(tuple(one.get(key, ())) for key in ("expect", "questions", "about")))
        for path in sorted(folder.glob("*.yaml"))
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


class Paraphraser:
    """Draws phrasings; equal seeds give equal ones."""

    def __init__(self, facts: Sequence[Fact], seed: int) -> None:
        self.facts = facts
        self._random = Random(seed)
        self._said: Mapping[str, Any] = yaml.safe_load((HERE / "paraphrase.yaml").read_text(encoding="utf-8"))
        self._weights = [len(fact.questions) ** 0.7 for fact in facts]
        self._openings = [(group, re.compile(_any_of(group), re.IGNORECASE)) for group in self._said["openings"]]
        self._words: dict[str, list[str]] = {}
        for first, *others in self._said["words"]:
            self._words.setdefault(first, []).extend(others)
        self._word = re.compile(rf"\b({_any_of(self._words)})(?![\w-])")

    def conversation(self) -> list[Message]:
        """Some turns, mostly one to three, perhaps after a system message."""
        random, messages = self._random, []
        if random.random() < 0.15:
            messages.append(Message("system", random.choice(self._said["system"])))
        for _ in range(min(MOST_TURNS, 1 + int(random.expovariate(0.8)))):
            (fact,) = random.choices(self.facts, self._weights)
            messages += [Message("user", self.question(fact)), Message("assistant", fact.answer)]
        return messages

    def question(self, fact: Fact) -> str:
        """One phrasing of one of the fact's questions."""
        random = self._random
        if fact.about and random.random() < 0.08:
            text = random.choice(self._said["about"]).format(random.choice(fact.about))
        else:
            text = self._filled(random.choice(fact.questions).rstrip("?"))
            text = self._opened(text) if random.random() < 0.4 else text
        text = self._word.sub(self._other_word, text)
        if random.random() < 0.12 and len(text.split()) > 3:
            text = " ".join(word for word in text.split() if word.lower() not in self._said["small"]) or text
        elif random.random() < 0.1 and len(text.split()) > 4:
            words = text.split()
            del words[random.randrange(len(words))]
            text = " ".join(words)
        if random.random() < 0.3:
            text = random.choice(self._said["before"]) + text
        if random.random() < 0.2:
            text += random.choice(self._said["after"])
        if random.random() < 0.15:
            text = self._mistyped(text)
        return text + random.choice(["?", "?", "?", "?", "", "", "", "", ".", "!", "??", " ?"])

    def _filled(self, text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda slot: self._random.choice(self._said["slots"][slot[1]]), text)

    def _opened(self, text: str) -> str:
        for group, pattern in self._openings:
            if found := pattern.match(text):
                return f"{self._random.choice(group)} {text[found.end() :].lstrip()}".strip()
        return text

    def _other_word(self, found: re.Match[str]) -> str:
        return self._random.choice(self._words[found[0]]) if self._random.random() < 0.2 else found[0]

    def _mistyped(self, text: str) -> str:
        """Two neighbours swapped, or a letter left out, doubled or wrong, in a long word without digits."""
        random = self._random
        spans = [found.span() for found in re.finditer(r"(?<![\w/.-])[a-z]{5,}(?![\w/-])", text)]
        if not spans:
            return text
        start, stop = random.choice(spans)
        at = random.randrange(start + 1, stop - 1)
        letter = text[at]
        middle = random.choice(
            [text[at + 1] + letter, text[at + 1], letter * 2 + text[at + 1], random.choice(LETTERS) + text[at + 1]]
        )
        return text[:at] + middle + text[at + 2 :]


def corpus(seed: int, conversations: int) -> Iterator[list[Message]]:
    """All conversations of a training."""
    paraphraser = Paraphraser(read_facts(), seed)
    return (paraphraser.conversation() for _ in range(conversations))


def _any_of(texts: Any) -> str:
    """A pattern of any of these texts, the longest first; words end where they end."""
    return "|".join(rf"{re.escape(text)}\b" for text in sorted(texts, key=len, reverse=True) if text)
