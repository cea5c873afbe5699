"""Escaping of foreign text (names, messages, paths) for the place where it is shown.

A terminal obeys control sequences, a shell its metacharacters, a browser what Markdown turns into HTML, a spreadsheet
what begins with an equals sign. Nothing is refused here and nothing is lost: what would act is shown as it is written.
JSON has an escape for every character and needs none of this.
"""

from __future__ import annotations

import re
import shlex

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]#|~!"} | _HTML)
_ACTIVE = re.compile(r":(?=//|[\w+-]+:)|(?<=\bwww)\.|(?<=\bmailto):|^[-+=]|^\d(?=\d{0,8}[.)])", re.IGNORECASE)
"""What makes a link of text around it, or begins a list or a heading."""
_FORMULA = ("=", "+", "-", "@")


def printable(text: str) -> str:
    r"""Escape text to one line for a terminal.

    Control characters, line ends and marks that turn the direction become ``\x1b``, ``\n``, ``\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def printable_lines(text: str) -> str:
    """The same for several lines: their ends and tabs stay."""
    return re.sub(r"[^\n\t]+", lambda piece: printable(piece[0]), text)


def shell_word(word: str) -> str:
    """A word as a shell takes it; with control characters as bash, zsh and ksh do (``$'...'``)."""
    if word.isprintable():
        return shlex.quote(word)
    letters = (
        letter.replace("\\", "\\\\").replace("'", "\\'")
        if letter.isprintable()
        else "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))
        for letter in word
    )
    return f"$'{''.join(letters)}'"


def markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is (CommonMark 0.31, 2.4 and 2.5).

    It makes no HTML, link, picture, emphasis, heading or list; blank lines still separate paragraphs.
    """
    lines = [printable(line.strip()).translate(_MARKDOWN) for line in text.splitlines()]
    return "\n".join(_ACTIVE.sub(lambda sign: f"&#{ord(sign[0])};", line) for line in lines)


def code(text: str) -> str:
    """Text as Markdown's code: in as many backticks as it takes (CommonMark 0.31, 6.1)."""
    text = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{room}{text}{room}{fence}"


def csv_cell(value: object) -> object:
    """A cell of a table that may be opened in a spreadsheet: text there is no formula (OWASP, "CSV Injection").

    A number stays a number, whatever its sign; text that begins like a formula gets an apostrophe before it.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
