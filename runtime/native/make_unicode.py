"""Writes src/unicode_tables.inc: what the native host has to know of Unicode, as ranges of code points.

Run it with a Python whose `unicodedata` is of the version that is wanted: python runtime/native/make_unicode.py
"""

import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

OUT = Path(__file__).parent / "src/unicode_tables.inc"


def ranges(is_in: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Neighbours for which it is true, first and last."""
    found: list[tuple[int, int]] = []
    for code in range(sys.maxunicode + 1):
        if is_in(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1] = (found[-1][0], code)
            else:
                found.append((code, code))
    return found


def table(name: str, rows: list[str]) -> str:
    """An array of C++."""
    lines, line = [], "   "
    for row in rows:
        if len(line) + len(row) > 116:
            lines.append(line)
            line = "   "
        line += f" {row},"
    return f"constexpr {name} = {{\n" + "\n".join([*lines, line]) + "};\n"


def main() -> None:
    """Write the file."""

    def category(*starts: str) -> Callable[[str], bool]:
        return lambda each: unicodedata.category(each).startswith(starts)

    parts = {
        "kPrintable": str.isprintable,
        "kLetters": category("L"),
        "kNumbers": category("N"),
        "kMarks": category("M"),
        "kDigits": category("Nd"),
        "kConnectors": category("Pc"),
    }
    text = f"// Unicode {unicodedata.unidata_version}, made by make_unicode.py: do not edit.\n"
    for name, is_in in parts.items():
        text += table(f"Range {name}[]", [f"{{0x{a:X}, 0x{b:X}}}" for a, b in ranges(is_in)])
    lower = [(code, chr(code).lower()) for code in range(sys.maxunicode + 1) if chr(code).lower() != chr(code)]
    one = [f"{{0x{code:X}, 0x{ord(text):X}}}" for code, text in lower if len(text) == 1]
    text += table("Pair kLower[]", one)
    combining = [code for code in range(sys.maxunicode + 1) if unicodedata.combining(chr(code))]
    text += table("Pair kCombining[]", [f"{{0x{code:X}, {unicodedata.combining(chr(code))}}}" for code in combining])
    pairs: list[str] = []
    singles: list[str] = []
    for code in range(sys.maxunicode + 1):
        parts_of = unicodedata.decomposition(chr(code)).split()
        if parts_of and not parts_of[0].startswith("<"):
            composes = unicodedata.normalize("NFC", chr(code)) == chr(code)
            second = parts_of[1] if len(parts_of) == 2 else "0"
            (pairs if composes and second != "0" else singles).append(f"{{0x{code:X}, 0x{parts_of[0]}, 0x{second}}}")
    text += "// Canonical decompositions: those that are composed again, and those that are not.\n"
    text += table("Triple kComposed[]", pairs) + table("Triple kDecomposed[]", singles)
    OUT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
