"""Lists of words as people and their editors write them, e.g. image ids."""

import codecs
from pathlib import Path

from crnet.data.findings import Finding, read_remedy, reason

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def words(path: Path) -> list[str]:
    """The words of a text file: UTF-8 with or without a byte order mark, or UTF-16 with one, and any line ends.

    Raises CrnetError if the file is absent, cannot be read or is in another encoding.
    """
    return _text(path).split()


def lines(path: Path) -> list[str]:
    """Its lines that are not blank, without blanks at their ends: names may hold some. Raises CrnetError likewise."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    where = f"the list {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({reason(error)})" if path.exists() else "is absent"
        raise Finding(where, what, read_remedy(error)) from error
    try:
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has null bytes")
    except ValueError as error:
        raise Finding(where, f"is no text in UTF-8 ({reason(error)})", "save it as plain text in UTF-8") from error
    return text
