# ruff: noqa: E501
"""Draw `pipeline.svg`, the README's picture of the way from a checkpoint to a picture: python docs/make_pipeline_svg.py"""

from pathlib import Path

BOX = '<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" class="{style}"/>'
TEXT = '<text x="{x}" y="{y}" class="{style}">{text}</text>'
STYLE = """
  svg { font: 14px system-ui, sans-serif; background: #fff } .b { fill: #eef4fc; stroke: #3b7dd8 }
  .g { fill: #fdf3e3; stroke: #d8923b } .r { fill: #eaf7ee; stroke: #3a9a5c } text { text-anchor: middle; fill: #1b2430 }
  .t { font-weight: 600 } .s { font-size: 12px; fill: #55606e } .a { stroke: #55606e; fill: none; marker-end: url(#m) }
  .l { text-anchor: start; font-weight: 600; fill: #55606e }
"""


def box(x: int, y: int, w: int, h: int, style: str, title: str, *lines: str) -> str:
    """A box with a title and small lines, centred."""
    top = y + h / 2 - 9 * len(lines) + 5
    parts = [BOX.format(x=x, y=y, w=w, h=h, style=style), TEXT.format(x=x + w / 2, y=top, style="t", text=title)]
    parts += [TEXT.format(x=x + w / 2, y=top + 18 * (i + 1), style="s", text=line) for i, line in enumerate(lines)]
    return "\n".join(parts)


def arrow(path: str, label: str = "", at: tuple[int, int] = (0, 0)) -> str:
    """An arrow along an SVG path, with a small label."""
    return f'<path d="{path}" class="a"/>' + TEXT.format(x=at[0], y=at[1], style="s", text=label)


def main() -> None:
    """Write the file beside this script."""
    parts = [
        '<text x="20" y="28" class="l">once, on any host</text>',
        box(20, 42, 170, 74, "b", "checkpoint", "safetensors, config,", "tokenizer"),
        box(300, 42, 250, 74, "b", "bundle", "4 ONNX graphs per precision,", "one weights file, manifest"),
        box(680, 42, 200, 74, "b", "engine", "compiled for one", "library and one device"),
        arrow("M190 79 H298", "export", (244, 70)),
        arrow("M550 79 H678", "build-engine", (614, 70)),
        TEXT.format(x=244, y=98, style="s", text="+ verification"),
        '<text x="20" y="156" class="l">every picture, on the target, no torch: runtime/</text>',
        box(20, 176, 120, 64, "r", "prompt", "“a red car”"),
        box(190, 176, 150, 64, "g", "text_decoder", "1 run: prefill"),
        box(390, 176, 190, 64, "g", "rep_decoder", "N + 1 runs: guidance,", "top-k and draw inside"),
        box(630, 176, 160, 64, "g", "denoiser", "25 runs: guidance,", "Euler step inside"),
        box(830, 176, 70, 64, "r", "PNG"),
        arrow("M140 208 H188"),
        arrow("M340 208 H388"),
        arrow("M580 208 H628"),
        arrow("M790 208 H828"),
        arrow("M545 176 C 545 146, 425 146, 425 174"),
        TEXT.format(x=485, y=146, style="s", text="token by token"),
        box(
            190,
            280,
            600,
            52,
            "r",
            "key/value cache",
            "static buffers of the runtime: text and representation tokens stay in context",
        ),
        arrow("M265 240 V278"),
        arrow("M485 240 V278"),
        arrow("M710 280 V242"),
    ]
    marker = (
        '<defs><marker id="m" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#55606e"/></marker></defs>'
    )
    body = "\n".join(parts)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 350" width="920" height="350">\n'
        f"<style>{STYLE}</style>\n{marker}\n{body}\n</svg>\n"
    )
    (Path(__file__).parent / "pipeline.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
