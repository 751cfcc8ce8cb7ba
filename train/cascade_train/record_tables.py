"""Runs as tables for people: the list of them, and one in full.

In: a `RunSummary` or `RunDetail` of `record`. Out: rich tables. Names and settings come from files,
so that none of them is read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from cascade_train.curves import selected_epoch
from cascade_train.record import RunDetail, RunSummary


def list_tables(runs: Sequence[RunSummary]) -> list[Table]:
    """The runs as one rich table."""
    table = Table(
        "run", "state", "preset", "data", "adapter", "AUGRC × 1000", "accuracy by exit, %",
        "FNR, %", "trains", "time", pad_edge=False,
    )  # fmt: skip
    for run in runs:
        if run.status == "damaged":
            table.add_row(escape(run.path), escape(f"damaged: {run.problem}"))
            continue
        state = f"{run.epochs} epoch{'s' * (run.epochs != 1)}"
        if run.status == "unfinished":
            state = f"unfinished, {run.epochs} of {run.wanted}"
        if run.status == "joined":
            state = f"joins {run.init}"
        if run.status == "chosen":
            state = f"exits of {run.init}"
        table.add_row(
            escape(run.path),
            escape(state),
            escape(run.preset or "-"),
            escape(run.data or "-"),
            run.adapter or "-",
            _number(run.augrc, 1000, 2),
            " / ".join(f"{100 * a:.1f}" for a in run.accuracy) or "-",
            _number(run.fnr, 100, 1),
            "-" if run.share is None else f"{100 * run.share:.3g} %",
            duration(run.seconds),
        )
    return [table]


def show_tables(detail: RunDetail) -> list[Table]:
    """One run as rich tables: what it is, its settings, its epochs."""
    run, config = detail.summary, detail.config
    made = config.get("made_by", {})
    facts = Table(show_header=False, title=escape(run.path), title_justify="left", pad_edge=False)
    state = f"{run.status}, {run.epochs} of {run.wanted} epochs"
    if run.status == "joined":
        state = "joined, not trained itself"
    if run.status == "chosen":
        state = f"exits of {run.init}, not trained itself"
    exits = ", ".join(map(str, config.get("exits", ())))
    rows = {
        "state": f"damaged: {run.problem}" if run.status == "damaged" else state,
        "network": f"{config.get('preset')}, exits after blocks {exits}",
        "weights": config.get("weights") if run.init is None else f"from the run {run.init}",
        "data": config.get("data"),
        "classes": " / ".join(map(str, config.get("classes", ()))),
        "adapter": _settings(config.get("adapter") or {}) or "-",
        "trains": "-" if run.share is None else f"{100 * run.share:.3g} % of the parameters",
        "time": duration(run.seconds),
        "peak memory": "-" if run.peak_memory is None else f"{run.peak_memory / 2**30:.2f} GiB",
        "made": f"{made.get('created')}, commit {made.get('git_commit')}",
        "machine": made.get("machine"),
        "command": made.get("command"),
        "settings": _settings(config.get("fit", {})),
    }
    for name, value in rows.items():
        facts.add_row(name, escape(str(value)))
    epochs = Table("epoch", "", "loss", "AUGRC × 1000", "accuracy by exit, %", "FNR, %", "time")
    best = selected_epoch(detail.log)
    for entry in detail.log:
        epochs.add_row(
            str(entry["epoch"] + 1),
            "selected" if entry is best else "",
            _number(entry.get("loss"), 1, 4),
            _number(entry.get("augrc"), 1000, 2),
            " / ".join(f"{100 * a:.1f}" for a in entry.get("accuracy", ())),
            _number(entry.get("fnr"), 100, 1),
            duration(entry.get("seconds")),
        )
    return [facts, epochs] if detail.log else [facts]


def _settings(values: Mapping[str, Any], prefix: str = "") -> str:
    """`lr 0.001, loss.gate 0.3`: nested settings on one line."""
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            parts.append(_settings(value, f"{prefix}{key}."))
        elif value not in (None, [], ""):
            parts.append(f"{prefix}{key} {value}")
    return ", ".join(part for part in parts if part)


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 5 s`, `2 h 7 min`."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
