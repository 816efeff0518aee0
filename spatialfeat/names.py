"""Text that others wrote, kept from doing harm as a file's name, on a terminal, or in a spreadsheet.

Ids, phase names and file names come from CSVs, weights and HDF5 files of strangers. Only the standard library is used.
"""

from __future__ import annotations

import re
import unicodedata

MAX_NAME_BYTES = 200
"""File systems allow 255 bytes; the rest is for suffixes such as `.png` and the temporary `.{name}.h5.partial`."""

FORMULA_SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"
"""With these a spreadsheet takes a cell for a formula and runs it; the last four are their full-width forms."""

PLAIN_NAME = rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME_BYTES - 1}}}"
"""Almost all names are of this form, which needs no closer look by `name_problem`."""

PLAIN_ID = rf"(?=.{{1,{MAX_NAME_BYTES}}}\Z){PLAIN_NAME}(?:/{PLAIN_NAME})*"
"""The same for ids, which may name folders."""

# Control characters, invisible ones (some turn the direction of writing), half characters, line and paragraph ends.
_UNSEEN_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners between letters: Persian and the scripts of India are not written without them.
_JOINERS = "\u200c\u200d"
_KEPT_ON_TERMINALS = "\n\t" + _JOINERS

ID_BREAKS = "./\\"
"""At these, and at white space, readers of MS-TCN's tree cut a video's name: in bundles at the first dot, in names of
results at the last slash."""

PHASE_BREAKS = "#"
"""At these, and at white space, such readers cut a phase's name."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
# A spreadsheet may cut a line at other signs than the comma, so a formula can also begin inside a cell.
_FORMULA_START = re.compile(rf"(^|[,;\t\r\n])([\s\"']*)(?=[{re.escape(FORMULA_SIGNS)}])")


def is_unseen(character: str) -> bool:
    """Whether a person cannot see the character, or a terminal obeys it instead of showing it."""
    return unicodedata.category(character) in _UNSEEN_CATEGORIES


def name_problem(text: str) -> str | None:
    """Why `text` cannot be part of a file's name, or None if it can.

    What leads out of a folder, hides a file, reads as an option or a formula, or shows as something else is refused.
    """
    if re.fullmatch(PLAIN_NAME, text):
        return None
    if not text:
        return "is empty"
    if "/" in text or "\\" in text:
        return "holds a slash, which separates folders"
    if text.startswith("."):
        return "starts with a dot, as hidden files and the folders . and .. do"
    if text.strip() != text:
        return "has a blank at one of its ends"
    if any(is_unseen(character) for character in text):
        return "holds a character that cannot be seen"
    if text[0] in FORMULA_SIGNS or spreadsheet_cell(text) != text:
        return f"has one of {FORMULA_SIGNS[:4]} where a spreadsheet takes it for a formula"
    if len(text.encode("utf-8")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def id_problem(text: str) -> str | None:
    """Why `text` cannot be an id, or None if it can: a name, or folders and a name, `video01/000031`."""
    if "/" not in text or text.startswith("/"):
        return name_problem(text)
    for part in text.split("/"):
        problem = name_problem(part)
        if problem is not None:
            return f"has the part {part[:80]!r}, which {problem}"
    return f"is longer than {MAX_NAME_BYTES} bytes" if len(text.encode("utf-8")) > MAX_NAME_BYTES else None


def file_name(text: str) -> str:
    """The id of a video as the name of a file, without suffix: `centre1+video01` for `centre1/video01`.

    Two ids never get one name: no part of an id begins with `+`, and a `+` inside is doubled.
    """
    return text.replace("+", "++").replace("/", "+")


def label_problem(text: str) -> str | None:
    """Why `text` cannot be a phase's name in tables, pictures and on terminals, or None if it can."""
    if not text.strip():
        return "is empty"
    if any(is_unseen(character) and character not in _JOINERS for character in text):
        return "holds a character that cannot be seen"
    if len(text.encode("utf-8")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None


def breaks_in(text: str, breaks: str) -> list[str]:
    """The characters at which readers of MS-TCN's tree cut `text`, or that cannot be seen."""
    return [sign for sign in text if sign.isspace() or sign in breaks or not sign.isprintable()]


def without_breaks(text: str, breaks: str, replacement: str) -> str:
    """`text` with `replacement` for each of `breaks_in` it."""
    for sign in breaks_in(text, breaks):
        text = text.replace(sign, replacement)
    return text


def natural_key(text: str) -> tuple[object, ...]:
    """Sort key that compares runs of digits as integers: video2 before video10, and 007 equal to 7."""
    parts = re.split(r"([0-9]+)", text)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def same_name_key(name: str) -> tuple[object, ...]:
    """Equal for names of one video or patient, however they are written: letter case, Unicode form, leading zeros."""
    return natural_key(unicodedata.normalize("NFKC", name).casefold())


def for_terminal(text: str) -> str:
    r"""`text` with what a terminal would obey written out: the escape character as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if is_unseen(character) and character not in _KEPT_ON_TERMINALS
        else character
        for character in text
    )


def spreadsheet_cell(value: object) -> object:
    """A value for a CSV cell: text that a spreadsheet would run gets an apostrophe before it, all else is unchanged.

    Ids never need it, because `name_problem` refuses such ones where they are read; so no id is ever changed.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    # Older versions of Python write a lone CR without quotes, and it would end the row.
    return _FORMULA_START.sub(r"\1\2'", re.sub(r"\r\n?", "\n", value))
