"""Text for a terminal: control characters escaped, and ASCII where the encoding lacks others."""

import codecs
import io
import sys
import unicodedata

PLAIN = "iwae-plain"
"""Name of the error handler for characters that the encoding lacks."""

LETTERS = {
    "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "↦": "->", "±": "+-",
    "×": "x", "·": "*", "•": "*", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∝": "~", "∞": "inf",
    "√": "sqrt", "∇": "grad ", "∂": "d", "‖": "||", "∈": " in ", "“": '"', "”": '"', "‘": "'",
    "’": "'", "⁄": "/",
}  # fmt: skip
"""ASCII for symbols; Greek letters become their names, and accented letters lose the accent."""


def visible(text: str) -> str:
    """Escape what would control a terminal or reorder a line.

    Line breaks stay. Escaped are the other control characters, directions of bidirectional text,
    and lone surrogates, which stand for bytes that are not text.
    """
    return "".join(c if _is_harmless(c) else _escaped(c) for c in text)


def _is_harmless(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in HARMFUL


HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories of invisible characters."""


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that the file system's encoding cannot decode
        return f"\\x{code - 0xDC00:02x}"
    if code < 256:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def say(*lines: object) -> None:
    """Print each as a line, `visible`."""
    for line in lines:
        print(visible(str(line)))


def speak_plainly() -> None:
    """Let standard output and error fall back to ASCII for what their encoding lacks."""
    codecs.register_error(PLAIN, _plain)
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper) or stream.closed:
            continue
        if stream.errors in STRICT:
            stream.reconfigure(errors=PLAIN)


STRICT = ("strict", "backslashreplace", "surrogateescape")
"""Error handlers that Python chooses; any other is the user's choice."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler: ASCII for what could not be encoded, and where to continue."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_letters, error.object[error.start : error.end])), error.end


def _letters(character: str) -> str:
    """ASCII for a character."""
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
