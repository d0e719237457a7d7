"""The pieces every page is made of: escaped text, tables, drawings, and the frame around them."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from lowmem.report.figures import Chart

_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def whole_page(title: str, sections: Sequence[str]) -> str:
    """A page that holds all it needs."""
    page = Template(resources.files("lowmem.report").joinpath("page.html").read_text(encoding="utf-8"))
    return page.substitute(title=escaped(title), body="\n".join(sections))


def write_whole(target: Path, page: str) -> None:
    """`target` holds `page`, or what it held before."""
    partial = target.with_name(f".partial-{target.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)


def curves(drawn: Sequence[Chart], title: str = "Curves") -> str:
    """A section of drawings, each with its legend and what it says in words."""
    figures = []
    for chart in drawn:
        legend = "".join(
            f'<li><span style="color:var({entry.variable})">{entry.sign}</span> {escaped(entry.label)}</li>'
            for entry in chart.legend
        )
        notes = "".join(f"<div>{escaped(note)}</div>" for note in chart.notes)
        figures.append(
            f"<figure><h3>{escaped(chart.title)}</h3>"
            f'<div role="img" aria-label="{escaped(chart.description)}">{chart.svg}</div>'
            f'<figcaption><ul class="legend">{legend}</ul>{notes}</figcaption></figure>'
        )
    grid = f'<div class="charts">{"".join(figures)}</div>' if figures else soft("No step was recorded.")
    return section(title, grid)


def section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls on its own. A head that starts with # stands over numbers; all heads empty: no head."""
    cells = "".join(f'<th class="number">{h[1:]}</th>' if h.startswith("#") else f"<th>{h}</th>" for h in heads)
    head = f"<thead><tr>{cells}</tr></thead>" if any(heads) else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def th(text: str) -> str:
    return f'<th scope="row">{escaped(text)}</th>'


def td(text: str, mood: str = "") -> str:
    return f'<td class="{mood}">{escaped(text)}</td>' if mood else f"<td>{escaped(text)}</td>"


def soft(text: str) -> str:
    return f'<p class="soft">{escaped(text)}</p>'


def escaped(text: str) -> str:
    """`text` for any place of the page: markup escaped, and what UTF-8 or HTML cannot hold (halves of a surrogate
    pair, control characters) replaced by a visible sign."""
    return html.escape(_UNSHOWABLE.sub("\ufffd", text), quote=True)
