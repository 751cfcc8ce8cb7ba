"""A measurement as one HTML page that needs nothing else: the tables of the terminal, and pictures.

In: what a verb would print, and PNGs. Out: a file. It looks like the bundle's own report, whose
style sheet it has.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cascade_bench import pictures
from cascade_calib.report import NOTHING_FROM_OUTSIDE
from cascade_calib.report_html import table

PICTURE = "figure img { display: block; width: 100%; height: auto; }"


def write(
    path: Path, title: str, parts: Iterable[Table | Text], images: Mapping[str, bytes]
) -> None:
    """Write the page, under a temporary name first.

    Args:
        images: PNGs by what they show.
    """
    pictures.write(path, render(title, parts, images).encode())


def render(title: str, parts: Iterable[Table | Text], images: Mapping[str, bytes]) -> str:
    """Each table is a section, with the sentences that follow it; the pictures come first."""
    sections: list[list[str]] = [[f"<h1>{escape(title)}</h1>"]]
    sections += [[_figure(name, data)] for name, data in images.items()]
    lead, rest = sections[0], sections[1:]
    section = lead
    for part in parts:
        if isinstance(part, Table):
            section = []
            rest.append(section)
            section.append(_table(part))
        else:
            section.append(f"<p>{escape(part.plain)}</p>")
    body = "\n".join(f"<section>{''.join(section)}</section>" for section in [lead, *rest])
    return document(title, body)


def document(title: str, body: str) -> str:
    """The whole file around a body, which must be HTML already."""
    style = resources.files("cascade_calib").joinpath("report.css").read_text("utf-8")
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">'
        f"<style>{style} {PICTURE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _figure(name: str, data: bytes) -> str:
    source = base64.b64encode(data).decode()
    return f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{source}"></figure>'


def _table(part: Table) -> str:
    title = _words(part.title)
    rows = zip(*([_words(cell) for cell in column.cells] for column in part.columns), strict=True)
    body = table([_words(column.header) for column in part.columns], rows, title)
    note = f'<p class="note">{escape(_words(part.caption))}</p>' if part.caption else ""
    return f"<h2>{escape(title)}</h2>{body}{note}"


def _words(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else "" if cell is None else str(cell)
