"""Texts as people give them, and text from tokens as they come, cut at stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

from bedplate.errors import InputError

INCOMPLETE = "\ufffd"  # what a decoder makes of bytes that are not (yet) a character


def strings(given: object, what: str) -> list[str]:
    """One string or several as a list; `what` they are called in errors.

    Raises:
        InputError: something else, or something else among them.
    """
    several = [given] if isinstance(given, str) or not isinstance(given, Iterable) else given
    found = []
    for number, each in enumerate(several, 1):
        if not isinstance(each, str):
            raise InputError(f"{what} {number}: must be a string, not {type(each).__name__}")
        found.append(each)
    return found


class TextStream:
    """The text of one continuation, token by token.

    A token may hold a part of a character, and its text may depend on the token before it (a leading space). So new
    tokens are decoded together with the last ones, at first the prompt, and held back while a character is incomplete.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._ids, self._stop = tokenizer, list(prompt), stop
        self._context, self._done = (
            0,
            len(prompt),
        )  # ids[context:done] are decoded as context; after them comes new text
        self._before = self._decode(0, self._done)
        self._given = 0
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with this token: complete characters that cannot be the start of a stop string."""
        self._ids.append(token)
        return self._take(last=False)

    def finish(self) -> str:
        """The rest, after the last token."""
        return self._take(last=True)

    def _take(self, last: bool) -> str:
        if not self.stopped:
            after = self._decode(self._context, len(self._ids))
            if last or not after.endswith(INCOMPLETE):
                self._append(after[len(self._before) :])
                self._context, self._done = self._done, len(self._ids)
                self._before = self._decode(self._context, self._done)
        end = len(self.text) if last or self.stopped else len(self.text) - self._pending()
        piece, self._given = self.text[self._given : end], max(end, self._given)
        return piece

    def _append(self, piece: str) -> None:
        # A stop string may have begun in the text before, never in what was given out: `_pending` kept that back.
        start, self.text = self._given, self.text + piece
        found = [at for stop in self._stop if (at := self.text.find(stop, start)) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True

    def _pending(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = min(len(self.text), max(map(len, self._stop), default=1) - 1)
        return next(
            (n for n in range(longest, 0, -1) if any(stop.startswith(self.text[-n:]) for stop in self._stop)), 0
        )

    def _decode(self, start: int, stop: int) -> str:
        return self._tokenizer.decode(self._ids[start:stop])
