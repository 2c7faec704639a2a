"""The commands and links of README.md and docs/, as they stand there. Knows nothing of what they should do."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:rf-export|python|make) [^`]+)`")
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """A command line of a document, and whether it stands in a block that people paste."""

    document: Path
    text: str
    in_block: bool

    @property
    def words(self) -> list[str]:
        """As the shell splits it, without the comment."""
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.document.name}: {self.text}"


def commands(document: Path) -> list[Command]:
    """Every command of a document: the lines of shell blocks, and inline code that starts one of our programs."""
    text = document.read_text(encoding="utf-8")
    blocks = [body for kind, body in BLOCK.findall(text) if kind == "sh"]
    lines = [line for body in blocks for line in body.splitlines() if line.split("#")[0].strip()]
    inline = [" ".join(code.split()) for code in INLINE.findall(BLOCK.sub("", text))]
    return [Command(document, line, True) for line in lines] + [Command(document, line, False) for line in inline]


def python_blocks(document: Path) -> list[str]:
    """The Python of a document."""
    return [body for kind, body in BLOCK.findall(document.read_text(encoding="utf-8")) if kind == "python"]


def links(document: Path) -> list[str]:
    """Where a document points to inside of the repository: a path, and perhaps an anchor."""
    return [link for link in LINK.findall(BLOCK.sub("", document.read_text(encoding="utf-8"))) if "://" not in link]


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = HEADING.findall(BLOCK.sub("", document.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
