"""The course of a training run as a picture, and as TensorBoard events where those are wanted.

In: the epochs of log.jsonl. Out: curves.png, six small panels over the epochs, the selected one
marked in each. Nothing global is touched: no pyplot, no display.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascade_calib import plots
from cascade_calib.plots import COLOURS, FAINT, LIMIT
from cascade_runtime.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE: dict[Any, Any] = {
    **plots.STYLE,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
}
TENSORBOARD = "pip install tensorboard"


def write_curves(
    log: Sequence[Mapping[str, Any]],
    path: Path,
    *,
    title: str = "",
    exits: Sequence[int] = (),
    max_fnr: float | None = None,
) -> None:
    """Draw the log and write the PNG under a temporary name first.

    Args:
        log: one mapping an epoch, with the keys of log.jsonl; at least one.
        exits: the blocks after which the exits stand, for their names.
        max_fnr: the limit that a selected epoch had to keep, drawn where given.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.6), dpi=130, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(2, 3, sharex=True)
        loss, accuracy, area, missed, rate, speed = panels.flat
        _line(loss, log, "loss", "Training loss")
        _accuracy(accuracy, log, exits)
        _line(area, log, "augrc", "AUGRC × 1000, lower is better", scale=1000)
        _missed(missed, log, max_fnr)
        unit = _power(max(float(entry.get("lr", 0.0)) for entry in log))
        _line(rate, log, "lr", f"Learning rate, 1e{unit}", scale=10.0**-unit)
        _line(speed, log, "images_per_s", "Training images a second")
        for axis in (rate, speed):
            axis.set_ylim(bottom=0)
        for axis in panels[1]:
            axis.set_xlabel("epoch")
        for axis in panels.flat:
            axis.grid(axis="y", color="#e8edf1", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        last = log[-1]["epoch"] + 1
        loss.set_xlim(1 - max(0.5, 0.02 * last), last + max(0.5, 0.02 * last))
        figure.suptitle(_title(log, title), x=0.01, ha="left", fontsize=10.5)
        temporary = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(temporary, format="png", metadata={"Software": None})
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def draw_curves(run: Path) -> None:
    """Draw a run's curves.png from its log; nothing to draw without an epoch."""
    log, config = read_log(run), read_object(run / "config.json")
    fit = config.get("fit", {})
    if log:
        write_curves(
            log,
            run / "curves.png",
            title=f"{run.resolve().name}: {config.get('preset')} on {config.get('data')}",
            exits=config.get("exits", ()),
            max_fnr=fit.get("max_fnr", (fit.get("constraints") or {}).get("fnr")),
        )


def read_log(run: Path) -> list[dict[str, Any]]:
    """The epochs of log.jsonl; none when it is not there yet.

    Raises:
        ConfigError: a line that is no epoch.
    """
    path = run / "log.jsonl"
    if not path.exists():
        return []
    log = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            log.append({**entry, "epoch": int(entry["epoch"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: line {number} is no epoch; the log is damaged") from error
    return log


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        ConfigError: it is missing, or none.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no settings")
    return value


def selected_epoch(log: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The epoch whose weights were kept: the last one that was selected."""
    kept = [entry for entry in log if entry.get("selected")]
    return kept[-1] if kept else None


def _power(value: float) -> int:
    """The power of ten that a value is written in."""
    return math.floor(math.log10(value)) if 0 < value < math.inf else 0


def _title(log: Sequence[Mapping[str, Any]], title: str) -> str:
    best = selected_epoch(log)
    mark = f"◆ selected: epoch {best['epoch'] + 1} of {len(log)}" if best else "no epoch selected"
    return f"{title}    {mark}" if title else mark


def _line(
    axes: Axes, log: Sequence[Mapping[str, Any]], key: str, title: str, scale: float = 1
) -> None:
    _draw(axes, log, [scale * float(entry.get(key, math.nan)) for entry in log], COLOURS[0])
    axes.set_title(title)


def _accuracy(axes: Axes, log: Sequence[Mapping[str, Any]], exits: Sequence[int]) -> None:
    count = max(len(entry.get("accuracy", ())) for entry in log)
    for i in range(count):
        name = f"after block {exits[i]}" if i < len(exits) else f"exit {i}"
        values = [
            100 * entry["accuracy"][i] if i < len(entry.get("accuracy", ())) else math.nan
            for entry in log
        ]
        _draw(axes, log, values, COLOURS[i % len(COLOURS)], name)
    axes.set_title("Accuracy by exit, %")
    if count:
        axes.legend(frameon=False, fontsize=8.5, loc="lower right")


def _missed(axes: Axes, log: Sequence[Mapping[str, Any]], limit: float | None) -> None:
    """FNR of all images and, where logged, of those acted on at the operating point."""
    _draw(axes, log, [100 * float(entry.get("fnr", math.nan)) for entry in log], COLOURS[0], "all")
    points = [entry.get("point") or {} for entry in log]
    if any(points):
        acted = [100 * float(point.get("fnr", math.nan)) for point in points]
        _draw(axes, log, acted, COLOURS[1], "acted on")
        axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    if limit is not None and limit < 1:
        axes.axhline(100 * limit, color=LIMIT, dashes=(4, 3), linewidth=1)
        axes.annotate(
            f"limit {100 * limit:g} %",
            (0, 100 * limit),
            xycoords=("axes fraction", "data"),
            xytext=(3, 3),
            textcoords="offset points",
            color=LIMIT,
            fontsize=8.5,
        )
        axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], 100 * limit))
    axes.set_title("Missed positives (FNR), %")


def _draw(
    axes: Axes,
    log: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    colour: str,
    name: str = "",
) -> None:
    """A line over the epochs, with a diamond at the selected one."""
    epochs = [entry["epoch"] + 1 for entry in log]
    dots = "o" if len(log) < 40 else ""
    axes.plot(epochs, values, marker=dots, markersize=2.5, color=colour, linewidth=1.6, label=name)
    best = selected_epoch(log)
    if best is not None:
        axes.axvline(best["epoch"] + 1, color=FAINT, linewidth=1, zorder=0)
        at = epochs.index(best["epoch"] + 1)
        axes.plot(epochs[at], values[at], "D", color=colour, markersize=6, zorder=5, clip_on=False)


class TensorBoardLog:
    """The same numbers as TensorBoard events, a step an epoch.

    Raises:
        ConfigError: TensorBoard is not installed; the message holds the line that installs it.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        """`done` epochs are there already: a resumed run hides what was logged after them."""
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError(f"logging for TensorBoard needs tensorboard: {TENSORBOARD}")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done)

    def write(self, entry: Mapping[str, Any]) -> None:
        """One epoch of the log; lists become one curve an exit."""
        for key, value in entry.items():
            if key == "epoch" or isinstance(value, str):
                continue
            parts = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
            for index, number in parts:
                if isinstance(number, bool | int | float):
                    tag = key if index is None else f"{key}/exit {index}"
                    self._writer.add_scalar(tag, float(number), entry["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
