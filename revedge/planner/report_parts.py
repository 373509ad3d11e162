"""What a report is made of: a page, tables that sort, pictures whose marks have titles. Knows nothing of plans."""

import html
import io
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

_STYLE = """
body{font:16px/1.45 system-ui,sans-serif;max-width:52rem;margin:0 auto;padding:1rem;color:#222;background:#fff}
figure{margin:1rem 0}h1{font-size:1.3rem}
h2{font-size:1.1rem;margin-top:2rem}svg{width:100%;height:auto}.tip{min-height:1.45em;color:#555}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}td,th{padding:.25rem .6rem;text-align:left}
th[data-sort]{cursor:pointer;text-decoration:underline dotted}tr:nth-child(even) td{background:#f4f4f4}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.chosen td{font-weight:bold}.over{color:#b00020}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
"""
_SCRIPT = """
document.querySelectorAll('th[data-sort]').forEach(th=>{th.tabIndex=0;const sort=()=>{
const table=th.closest('table'),body=table.tBodies[0],at=[...th.parentNode.children].indexOf(th);
const up=th.getAttribute('aria-sort')!=='ascending';
table.querySelectorAll('th').forEach(each=>each.removeAttribute('aria-sort'));
th.setAttribute('aria-sort',up?'ascending':'descending');
const value=row=>{const v=row.cells[at].dataset.value??row.cells[at].textContent;return isNaN(v)?v:+v};
[...body.rows].sort((a,b)=>{const x=value(a),y=value(b);return (x<y?-1:x>y?1:0)*(up?1:-1)}).forEach(r=>body.append(r))};
th.onclick=sort;th.onkeydown=e=>{if(e.key==='Enter')sort()}});
document.querySelectorAll('figure').forEach(f=>f.onclick=f.onmouseover=e=>{const g=e.target.closest('g[id*=-tip-]');
if(g)f.querySelector('.tip').textContent=g.querySelector('title').textContent});
"""
Cell = str | tuple[str, float]  # HTML, or a text with the value that it is sorted by
Tip = Callable[[Any, str], None]  # gives a mark of a picture its title


def document(title: str, parts: Sequence[str]) -> str:
    """Return an HTML page that needs no other file."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{esc(title)}</title><style>{_STYLE}</style></head>\n<body>{body}\n"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def figure(caption: str, draw: Callable[[Any, Tip], None], *, height: float = 3.2) -> str:
    """Return an SVG picture: ``draw`` gets matplotlib axes, and what gives a mark its title.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    tips: dict[str, str] = {}

    def tip(artist: Any, text: str) -> None:
        name = f"tip-{len(tips)}"
        tips[name] = text
        artist.set_gid(name)

    # A salt makes the same page of the same plan, byte for byte.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.size": 9}):
        canvas = Figure(figsize=(5.2, height), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, tip)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    # Without width and height it fills the page; an HTML page knows xlink without its name space.
    svg = f'<svg {box[0]} role="img" aria-label="{esc(caption)}">' + svg[svg.index(">") + 1 :]
    for name, text in tips.items():
        svg = svg.replace(f'<g id="{name}">', f'<g id="{name}"><title>{esc(text)}</title>', 1)
    # Every picture has its own names, or one would draw with the clip paths of another.
    own = f"f{zlib.crc32(caption.encode()):08x}"
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{own}-", svg.replace("xlink:href", "href"))
    return f"<figure><figcaption>{esc(caption)}</figcaption>{svg}<div class=tip></div></figure>"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    marks: Sequence[str] = (),
    *,
    sortable: bool = False,
) -> str:
    """Return a table; ``marks`` are classes of its rows."""
    head = "".join(f"<th{' data-sort' if sortable else ''}>{esc(name)}</th>" for name in header)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(
            f"<td>{cell}</td>"
            if isinstance(cell, str)
            else f'<td class=n data-value="{cell[1]!r}">{esc(cell[0])}</td>'
            for cell in row
        )
        mark = f' class="{marks[index]}"' if marks and marks[index] else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def esc(text: str) -> str:
    """Return ``text`` as HTML."""
    return html.escape(text, quote=True)
