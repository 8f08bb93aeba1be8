"""Text while it is generated: a piece is shown only when no later token can change it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import RecipeError, Unsupported
from .tokenizer import Tokenizer

MAX_STOPS = 16
MAX_STOP_BYTES = 256


def checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings of a request.

    Raises:
        RecipeError: they have a wrong type, or are too many, too long or empty.
    """
    if not isinstance(stop, Sequence) or isinstance(stop, bytes):
        raise RecipeError("expected stop as a string or a list of strings", found=type(stop).__name__)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS:
        raise RecipeError(f"expected at most {MAX_STOPS} stop strings", found=f"{len(stops)}")
    for index, text in enumerate(stops):
        if not isinstance(text, str) or not text:
            raise RecipeError(f"expected stop[{index}] as a string that is not empty", found=repr(text))
        if len(text.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            found = f"{len(text)} characters"
            raise RecipeError(f"expected stop[{index}] of at most {MAX_STOP_BYTES} bytes", found=found)
    return stops


class TextStream:
    """Turns tokens into text piece by piece and stops at the first complete stop string.

    The joined pieces equal `tokenizer.decode` of all tokens `after` the prompt's, cut before that stop string: prompt
    and pieces together are the text of the whole. So an answer in a conversation, too, begins with a space where the
    model wrote one behind the template's last word (sentencepiece), though decoding the answer alone would drop it.
    Of stop strings that end at the same character the longest counts. Incomplete UTF-8 and possible beginnings of a
    stop string are held back. Without a tokenizer all text is empty.

    Raises:
        RecipeError: see `checked_stops`.
        Unsupported: there are stop strings, but no tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stop: str | Sequence[str] = (), *, after: Sequence[int] = ()
    ) -> None:
        self._stops = checked_stops(stop)
        if tokenizer is None and self._stops:
            raise Unsupported("cannot use stop strings with this engine", found="no tokenizer in the checkpoint")
        self._tokens = None if tokenizer is None else tokenizer.detokenizer(after=after)
        self._pieces: list[str] = []
        self._held = ""
        self.stopped = False

    @property
    def text(self) -> str:
        """The text shown so far."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """Adds one token; returns the text that no later token can change, which may be empty."""
        return "" if self.stopped or self._tokens is None else self._show(self._tokens.push(token), final=False)

    def finish(self) -> str:
        """Ends the tokens; returns the rest of the text."""
        return "" if self.stopped or self._tokens is None else self._show(self._tokens.finish(), final=True)

    def _show(self, text: str, final: bool) -> str:
        pending = self._held + text
        if found := self._first_stop(pending):
            self.stopped = True
            piece, self._held = pending[: found[1]], ""
        else:
            certain = len(pending) if final else self._certain(pending)
            piece, self._held = pending[:certain], pending[certain:]
        if piece:
            self._pieces.append(piece)
        return piece

    def _first_stop(self, pending: str) -> tuple[int, int] | None:
        """(end, start) of the first complete stop string, or None."""
        starts = ((stop, pending.find(stop)) for stop in self._stops)
        return min(((start + len(stop), start) for stop, start in starts if start >= 0), default=None)

    def _certain(self, pending: str) -> int:
        """The number of characters of `pending` that cannot begin a stop string."""
        longest = max(map(len, self._stops), default=1)
        for start in range(max(0, len(pending) - longest + 1), len(pending)):
            if any(stop.startswith(pending[start:]) for stop in self._stops):
                return start
        return len(pending)
