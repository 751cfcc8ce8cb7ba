"""The small pieces of HTML that the report's sections are put together from.

In: texts and numbers, which may hold anything; they are escaped here. Out: HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

EMPTY = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """A table whose first column names its rows; it scrolls by itself where it is too wide."""
    body = "".join(
        f'<tr><th scope="row">{_breakable(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return scrolling(head, body, label)


def scrolling(head: Sequence[str], body: str, label: str) -> str:
    """A table of these rows in a box that can be reached, and scrolled, with the keyboard."""
    top = "".join(
        f'<th scope="col">{_breakable(cell)}</th>' if cell else "<td></td>" for cell in head
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, as a list."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs)
    return f'<dl class="facts">{items}</dl>'


def figures(rows: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: a title, a large value, a note."""
    cells = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd>"
        f"<dd class='note'>{escape(note)}</dd></div>"
        for title, value, note in rows
    )
    return f'<dl class="figures">{cells}</dl>'


def _breakable(name: str) -> str:
    """A name that may go on, after a slash, in the next line."""
    return escape(name).replace("/", "/<wbr>")


def number(value: float) -> str:
    return EMPTY if math.isnan(value) else f"{value:.4f}"


def amount(value: float) -> str:
    """A count to three digits, as people say it: 850, 29.3 k, 84.7 M, 1.2 G."""
    size, units = value, ["", " k", " M", " G", " T"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        units.pop(0)
    digits = f"{size:.3g}" if size < 999.5 else f"{size:.0f}"
    return f"{digits}{units[0]}"
