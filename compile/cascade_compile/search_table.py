"""The table of all candidates of a search, for the terminal.

In: the manifest's `search`. Out: a rich table and one sentence on how it was measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cascade_calib.report_html import EMPTY
from cascade_calib.report_search import of_limit
from cascade_calib.words import percent
from cascade_runtime.manifest import Search, SearchCandidate

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def render(search: Search) -> Iterator[Table | Text]:
    """What to print at the end of a search."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Candidates")
    for head in ("candidate", "images/s", "MB", "difference", "flips"):
        table.add_column(head, justify="left" if head == "candidate" else "right", no_wrap=True)
    for head in ("coverage", "risk", "tested", "outcome"):
        table.add_column(head, justify="left" if head == "outcome" else "right", no_wrap=True)
    table.add_column("why")
    for row in search.candidates:
        table.add_row(*_cells(row, search.n_select))
    yield table
    yield Text(
        f"images/s: median of {search.rounds} rounds, slowest to fastest, over {search.timed} "
        f"images of val_select, {search.batch} at a time, early exits at the proposed thresholds. "
        "difference: largest to the float32 network, as a share of its limit. coverage and risk: "
        f"on the {search.n_select:,} images of val_select. tested: of this candidate's hypotheses, "
        f"passed / tested, in one sequence of {search.sequence_length}."
    )


def _cells(row: SearchCandidate, n_select: int) -> tuple[str, ...]:
    if row.images_per_s is None:
        return (row.name, *(EMPTY,) * 7, row.outcome, row.reason)
    parity = row.parity
    return (
        row.name,
        f"{row.images_per_s:g} ({row.slowest:g}-{row.fastest:g})",
        f"{row.engine_bytes / 1e6:.3g}",
        percent(of_limit(row), 2),
        f"{parity.get('decision_flips', 0):.0f}/{parity.get('images', 0):.0f}",
        percent(row.accepted / n_select) if n_select else EMPTY,
        percent(row.errors / row.accepted) if row.accepted else EMPTY,
        f"{row.passed}/{row.tested}" if row.tested else EMPTY,
        row.outcome,
        row.reason,
    )
