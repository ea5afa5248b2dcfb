"""Pages that stand by themselves: their pictures and styles are in them, and nothing is fetched or run."""

import base64
import html
import itertools
import pathlib
from collections.abc import Iterable

from stagjax.printable import for_terminal
from stagjax.reporting.grid import Column, Grid

# In colours that fit the pictures, on light and on dark.
STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --paper: #ffffff; --soft: #5b6470; --line: #d5dae1;
  --shade: #f4f6f8; --accent: #0b5fa5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --paper: #15181c; --soft: #a3adb9; --line: #39414b; --shade: #1e2329; --accent: #7cc0f4; }
}
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p, li, dd { max-width: 46rem; }
.soft, figcaption, .caption { color: var(--soft); font-size: .9rem; white-space: pre-line; }
.findings li:first-child { font-weight: 600; }
.note { border-left: 4px solid var(--accent); background: var(--shade); padding: .5rem .9rem; margin: .75rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .28rem .7rem; text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th.group { text-align: center; border-left: 1px solid var(--line); background: var(--shade); }
.begins { border-left: 1px solid var(--line); }
th.text, td.text { text-align: left; white-space: normal; min-width: 5rem; overflow-wrap: anywhere; }
th.whole, td.whole { white-space: nowrap; }
tr.foot { background: var(--shade); }
figure { margin: 1.25rem 0; }
img { max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--shade); padding: 1rem; overflow-x: auto; font-size: .8rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page; `title` is text, `body` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An empty icon of its own: without one browsers ask the server for theirs.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return text for the page: no markup, and no control characters that turn the order of what is beside it."""
    return html.escape(for_terminal(text))


def element(name: str, text: str, of_class: str = "") -> str:
    """Return an element that holds text, escaped."""
    attribute = f' class="{of_class}"' if of_class else ""
    return f"<{name}{attribute}>{escape(text)}</{name}>"


def bullets(texts: Iterable[str], of_class: str = "") -> str:
    """Return a list of texts."""
    attribute = f' class="{of_class}"' if of_class else ""
    return f"<ul{attribute}>\n" + "\n".join(element("li", text) for text in texts) + "\n</ul>"


def definitions(entries: Iterable[tuple[str, str]]) -> str:
    """Return a list of terms with what they are."""
    lines = (element("dt", term) + element("dd", text) for term, text in entries)
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def table(grid: Grid) -> str:
    """Return a table with a head for every group of columns; columns without any figure are left out."""
    columns, kinds = grid.filled, []
    groups = [(group, len(list(members))) for group, members in itertools.groupby(columns, lambda c: c.group)]
    for group, count in groups:
        kinds += [" begins" if group and number == 0 else "" for number in range(count)]
    kinds = [_kind(column) + kind for column, kind in zip(columns, kinds, strict=True)]
    lines = ['<div class="scroll"><table>', element("caption", grid.title), "<thead>"]
    if any(group for group, _ in groups):
        heads = (
            f'<th class="group" scope="colgroup" colspan="{count}">{escape(group)}</th>'
            if group
            else f'<td colspan="{count}"></td>'
            for group, count in groups
        )
        lines.append(f"<tr>{''.join(heads)}</tr>")
    heads = (element("th", " ".join(c.head.split()), kind) for c, kind in zip(columns, kinds, strict=True))
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    rows = list(zip(*(column.cells for column in columns), strict=True))
    for number, row in enumerate(rows):
        foot = ' class="foot"' if number >= len(rows) - grid.feet else ""
        cells = (element("td", cell, kind) for cell, kind in zip(row, kinds, strict=True))
        lines.append(f"<tr{foot}>{''.join(cells)}</tr>")
    lines += ["</tbody>", "</table></div>"]
    return "\n".join([*lines, element("p", grid.caption, "caption")] if grid.caption else lines)


def _kind(column: Column) -> str:
    return "figure" if not column.left else "text whole" if column.whole else "text"


def picture(path: pathlib.Path, alternative: str, caption: str) -> str:
    """Return a PNG, its bytes in the page, with what is seen on it."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}">'
    return f"<figure>\n{image}\n{element('figcaption', caption)}\n</figure>"


def folded(summary: str, text: str) -> str:
    """Return preformatted text that is shown when its summary is chosen."""
    return f"<details>\n{element('summary', summary)}\n{element('pre', text)}\n</details>"
