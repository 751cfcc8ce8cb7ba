"""The report's exits: which exit answers how many images, how often wrongly, and at what cost.

In: the decision, the certificate and, where there is some, what the engines said on the calibration
images. Out: HTML. Cost is in multiply-adds, which the network fixes; the time they take depends on
the device, and is in the table of targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

import numpy as np

from cascade_calib.collect import Collected
from cascade_calib.report_html import EMPTY, amount, scrolling
from cascade_calib.words import percent
from cascade_runtime.decision import Verdict, decide
from cascade_runtime.manifest import (
    Certificate,
    Decision,
    StageInfo,
    last_network,
    stage_inputs,
)

COLOURED_EXITS = 6


@dataclass(frozen=True)
class Row:
    """Where `count` of the images ended; `wrong` None: unknown, `cost` None: differs among them."""

    name: str
    count: int
    style: str
    wrong: int | None = None
    cost: int | None = None


def exits_and_cost(
    c: Certificate, decision: Decision, infos: Sequence[StageInfo], calib: Collected | None
) -> str:
    """A bar of who answers, the same as a table with errors and cost, and the mean cost."""
    costs = list(accumulate(info.macs for info in infos))
    alone = sum(info.macs for info in infos[last_network(stage_inputs(infos)) :])
    rows = _answered(c, costs, _wrong(decision, calib)) + _deferred(c)
    bar = "".join(
        f'<i class="{row.style}" style="flex:{row.count}"></i>' for row in rows if row.count
    )
    return (
        "<h3>Who answers, and what it costs</h3>"
        f'<div class="bar" aria-hidden="true">{bar}</div>{_table(rows, c.n)}'
        + _mean_cost(c, decision, costs, alone, calib)
    )


def _decided(decision: Decision, data: Collected) -> Verdict:
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite defers
        return decide(data.exits, decision)


def _wrong(decision: Decision, calib: Collected | None) -> list[int] | None:
    """Wrong answers of each exit; they sum to the certificate's."""
    if calib is None:
        return None
    verdict = _decided(decision, calib)
    wrong = verdict.acted & (verdict.label != calib.labels)
    return [int((wrong & (verdict.stage == stage)).sum()) for stage in range(len(calib.exits))]


def _answered(c: Certificate, costs: Sequence[int], wrong: list[int] | None) -> list[Row]:
    return [
        Row(f"exit {i}", k, f"s{i % COLOURED_EXITS}", None if wrong is None else wrong[i], costs[i])
        for i, k in enumerate(c.exit_counts)
    ]


def _deferred(c: Certificate) -> list[Row]:
    """What was given to somebody else, by reason where prediction sets make one."""
    if c.sets is None:
        return [Row("deferred", c.n - c.accepted, "sd")]
    reasons = [("both classes in the set", c.sets.ambiguous, "sb")]
    if c.sets.empty:
        reasons.append(("no class in the set", c.sets.empty, "se"))
    reasons.append(("not accepted", c.n - c.sets.accepted, "sd"))
    return [Row(f"deferred: {name}", count, style) for name, count, style in reasons]


def _table(rows: Sequence[Row], n: int) -> str:
    head = ("", "of all images", "wrong", "multiply-adds so far")
    body = "".join(
        f'<tr><th scope="row"><i class="{row.style}"></i>{escape(row.name)}</th>'
        f"<td><b>{percent(row.count / max(1, n))}</b> <span>{row.count:,}</span></td>"
        f"<td>{_wrong_of(row)}</td>"
        f"<td>{EMPTY if row.cost is None else amount(row.cost)}</td></tr>"
        for row in rows
    )
    return f'<div class="exits">{scrolling(head, body, "Who answers, and what it costs")}</div>'


def _wrong_of(row: Row) -> str:
    if row.wrong is None or not row.count:
        return EMPTY
    return f"<b>{percent(row.wrong / row.count)}</b> <span>{row.wrong:,}</span>"


def _mean_cost(
    c: Certificate,
    decision: Decision,
    costs: Sequence[int],
    full: int,
    calib: Collected | None,
) -> str:
    """Two bars: an image with the early exits, and one that always runs to the end.

    Args:
        full: of the last network alone, which is what one would run to the end.
    """
    if not c.n:
        return ""
    end, most = ("the last model" if costs[-1] > full else "to the end"), ""
    if calib is not None:
        mean = float(np.asarray(costs)[_decided(decision, calib).stage].mean())
    else:  # a deferred image may have left early
        most = "at most "
        ended = [*c.exit_counts[:-1], c.n - sum(c.exit_counts[:-1])]
        mean = sum(k * cost for k, cost in zip(ended, costs, strict=True)) / c.n
    share = mean / full if full else 1.0
    whole = max(1.0, share)  # two models may take more than the second alone
    bars = "".join(
        f'<div><span>{name}</span><span class="track" aria-hidden="true">'
        f'<i class="{style}" style="width:{100 * part / whole:.1f}%"></i></span>'
        f"<b>{amount(cost)}</b></div>"
        for name, part, cost, style in (
            ("with early exits", share, mean, "s0"),
            (f"always {end}", 1.0, full, "sd"),
        )
    )
    return (
        f'<div class="cost">{bars}</div><p class="note">Mean multiply-adds an image: '
        f"{most}{percent(share)} of always running {end}. Counted on the {c.n:,} calibration "
        "images.</p>"
    )
