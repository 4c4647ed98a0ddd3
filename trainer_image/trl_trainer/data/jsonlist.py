"""Reads the elements of one long JSON list one by one, so that memory does not grow with their number.

With the standard library's own parser, on a window that holds the longest element there may be: numbers, NaN and the
place of an error are those of json.loads. A streaming parser (ijson) gives decimals for numbers, and no place.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, TextIO


def elements(file: TextIO, longest: int, parse_constant: Callable[[str], Any]) -> Iterator[Any]:
    """Yield the elements of the list, each at most `longest` characters. JSONDecodeError as json.loads raises it,
    except that the text that it carries is the end of the file's."""
    window = _Window(file, longest)
    decoder = json.JSONDecoder(parse_constant=parse_constant)
    if not window.take("["):
        raise window.error("Expecting '['")
    closed = window.take("]")
    while not closed:
        try:
            element, window.at = decoder.raw_decode(window.text, window.at)
        except json.JSONDecodeError as error:
            raise window.error(error.msg, error.pos) from error
        yield element
        closed = window.take("]")
        if not closed and not window.take(","):
            raise window.error("Expecting ',' delimiter")
    if window.next():
        raise window.error("Extra data")


class _Window:
    """The part of the file that is being read; at least `longest` characters after `at`, or all that are left."""

    def __init__(self, file: TextIO, longest: int) -> None:
        self._file = file
        self._longest = longest
        self._line = 1
        self._column = 0
        self._ended = False
        self.text = ""
        self.at = 0

    def take(self, character: str) -> bool:
        """Go behind `character` and the space after it, and return True, if it comes next."""
        found = self.next() == character
        if found:
            self.at += 1
            self.next()
        return found

    def next(self) -> str:
        """Go behind the space, and return the character there; nothing at the end."""
        while True:
            if len(self.text) - self.at < self._longest and not self._ended:
                self._fill()
            if self.text[self.at : self.at + 1] not in tuple(" \t\r\n"):
                return self.text[self.at : self.at + 1]
            self.at += 1

    def error(self, message: str, at: int | None = None) -> json.JSONDecodeError:
        at = self.at if at is None else at
        if not self._ended:
            message += f" (or an element is longer than {self._longest // 2**20} MiB)"
        found = json.JSONDecodeError(message, self.text, at)
        found.lineno, found.colno = self._place(at)
        return found

    def _place(self, at: int) -> tuple[int, int]:
        lines = self.text.count("\n", 0, at)
        return self._line + lines, at - self.text.rfind("\n", 0, at) + (0 if lines else self._column)

    def _fill(self) -> None:
        self._line, column = self._place(self.at)
        self._column = column - 1
        # What is behind goes before more comes.
        self.text, self.at = self.text[self.at :], 0
        more = self._file.read(self._longest)
        self.text += more
        self._ended = not more
