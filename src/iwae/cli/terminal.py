"""Text for a terminal: nothing that steers it, and plain letters where it has no others."""

import codecs
import io
import sys
import unicodedata

PLAIN = "iwae-plain"
"""The name of the handler of characters that an encoding does not have."""

LETTERS = {
    "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "↦": "->", "±": "+-",
    "×": "x", "·": "*", "•": "*", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∝": "~", "∞": "inf",
    "√": "sqrt", "∇": "grad ", "∂": "d", "‖": "||", "∈": " in ", "“": '"', "”": '"', "‘": "'",
    "’": "'", "⁄": "/",
}  # fmt: skip
"""What is written for signs; Greek letters go by their names, letters with accents without."""


def visible(text: str) -> str:
    """The text with what would steer a terminal, or reorder its line, written as escapes.

    Line breaks stay. What is escaped are the other control characters, those that give directions
    to bidirectional text, and halves of surrogate pairs, which stand for bytes that are no text.
    """
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text)


def _is_harmless(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in HARMFUL


HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that are not seen."""


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that the file system's encoding does not have
        return f"\\x{code - 0xDC00:02x}"
    if code < 256:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def say(*lines: object) -> None:
    """Print each as a line, `visible`."""
    for line in lines:
        print(visible(str(line)))


def speak_plainly() -> None:
    """Let standard output and error write plain letters for what their encoding does not have."""
    codecs.register_error(PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.closed:
            continue
        if stream.errors in REFUSING:
            stream.reconfigure(errors=PLAIN)


REFUSING = ("strict", "backslashreplace", "surrogateescape")
"""Handlers that Python chooses; another is the user's own."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Plain letters for the characters that could not be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letters, error.object[error.start : error.end])), error.end


def _letters(character: str) -> str:
    """What stands for a character, in ASCII."""
    if character in LETTERS:
        return LETTERS[character]
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        only = {"HORIZONTAL": "-", "VERTICAL": "|"}
        return only.get(name.split()[-1], "+") if " AND " not in name else "+"
    if name.startswith("GREEK") and "LETTER" in name:
        letter = name.split("LETTER ")[1].split()[0]
        return letter.capitalize() if "CAPITAL" in name else letter.lower()
    parts = unicodedata.normalize("NFKD", character)
    if unicodedata.category(character) == "Mn":
        return ""
    if parts == character:
        return "?"
    return "".join(part if part.isascii() else _letters(part) for part in parts)
