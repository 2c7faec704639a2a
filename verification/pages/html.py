"""A report as one HTML file that opens offline: pictures, tables and bars, no script and nothing to fetch.

Knows nothing of models: sections in, text out.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --soft: #8882 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line) }
figcaption { font-size: .9rem; white-space: pre-line } .note { opacity: .75; font-size: .92rem }
.bars { display: grid; grid-template-columns: max-content 1fr; gap: .25rem .8rem; align-items: center }
.bars i { display: block; height: 1.1rem; background: var(--bar); border-radius: 2px; min-width: 2px }
.bars span { white-space: nowrap } .bar { display: flex; gap: .5rem; align-items: center }
pre { background: var(--soft); padding: .6rem 1rem; overflow-x: auto }
"""


@dataclass(frozen=True)
class Section:
    """A heading and its content, already HTML."""

    title: str
    body: str


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    parts = "\n".join(f"<h2>{html.escape(section.title)}</h2>\n{section.body}" for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1><p class="note">{html.escape(subtitle)}</p>\n{parts}\n</body></html>\n'
    )


def note(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{html.escape(text)}</p>'


def commands(lines: Sequence[str]) -> str:
    """Commands to type."""
    return "<pre>" + "\n".join(f"<code>{html.escape(line)}</code>" for line in lines) + "</pre>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of texts and numbers."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def pictures(items: Sequence[tuple[NDArray[np.uint8], str]]) -> str:
    """Pictures `uint8 [H, W, 3]` with captions, in a grid."""
    figures = [
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{_png(picture)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for picture, caption in items
    ]
    return f'<div class="pictures">{"".join(figures)}</div>'


def bars(items: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: (name, length, label); the longest fills 75% of the row."""
    longest = max((value for _, value, _ in items), default=1.0) or 1.0
    rows = [
        f'<span>{html.escape(name)}</span><div class="bar"><i style="width:{75 * value / longest:.1f}%"></i>'
        f"<span>{html.escape(label)}</span></div>"
        for name, value, label in items
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def _png(picture: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
