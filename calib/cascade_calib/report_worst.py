"""The report's worst images: what was acted on wrongly, the most confident first.

In: the decisions, what the engines said on `val_select`, and its pixels. Out: HTML. These are
selection images for the reason that the curves are: nobody is to look at errors on `val_calib` and
then choose again. An image that several targets get wrong is shown once, so that the page stays
small.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from cascade_calib.collect import Collected
from cascade_calib.report_html import table
from cascade_calib.scaling import sigmoid
from cascade_calib.thumbnails import thumbnail
from cascade_calib.words import percent
from cascade_runtime.decision import decide
from cascade_runtime.manifest import Decision
from cascade_runtime.preprocess import Pixels, printable

SHOWN = 12
_NAME = 80  # characters of a file name; its end says more than its beginning


@dataclass(frozen=True)
class WrongAnswer:
    """One image that one target acted on wrongly; `pixels` uint8 [H, W, 3], if it may be shown."""

    name: str
    truth: int
    answer: int
    exit: int
    score_logit: float
    pixels: Pixels | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Acted:
    """Of a target's selection images: how many it acts on, and which of these wrongly."""

    count: int
    wrong: tuple[WrongAnswer, ...]


def acted_on(decision: Decision, select: Collected, pixels: Pixels | None) -> Acted:
    """What this target does with the selection images.

    Args:
        pixels: uint8 [N, H, W, 3] of those images; None: the page is to show none of them.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite defers
        verdict = decide(select.exits, decision)
    wrong = tuple(
        WrongAnswer(
            select.names[i],
            int(select.labels[i]),
            int(verdict.label[i]),
            int(verdict.stage[i]),
            float(verdict.score_logit[i]),
            None if pixels is None else pixels[i],
        )
        for i in np.flatnonzero(verdict.acted & (verdict.label != select.labels))
    )
    return Acted(int(verdict.acted.sum()), wrong)


def worst(answers: Iterable[WrongAnswer], shown: int = SHOWN) -> list[list[WrongAnswer]]:
    """The most confidently wrong images, each with what every target said of it.

    Ties go by name, so that the order of the images does not matter.
    """
    images: dict[str, list[WrongAnswer]] = {}
    for one in sorted(answers, key=lambda a: (-a.score_logit, a.name)):
        images.setdefault(one.name, []).append(one)
    return list(images.values())[:shown]


def worst_images(acted: Mapping[str, Acted], classes: tuple[str, str]) -> str:
    """The section; `acted` is by target, on the same images. Nothing where none acts on any."""
    acted = {name: one for name, one in acted.items() if one.count}
    if not acted:
        return ""
    rows = [
        (name, f"{len(one.wrong):,} of {one.count:,}", percent(len(one.wrong) / one.count))
        for name, one in acted.items()
    ]
    gallery = worst(answer for one in acted.values() for answer in one.wrong)
    cards = "".join(_card(answers, classes, len(acted)) for answers in gallery)
    return (
        "<section><h2>Worst images</h2><p>Selection images that were acted on wrongly, the most "
        f"confident first{_how_many(acted, gallery)}. Errors on the calibration images are not "
        "shown: whoever looks at them and then chooses again has used those images up.</p>"
        f'<ul class="worst">{cards}</ul>'
        + table(("target", "wrong when acting", ""), rows, "Errors on the selection images")
        + "</section>"
    )


def _how_many(acted: Mapping[str, Acted], gallery: Sequence[object]) -> str:
    images = {answer.name for one in acted.values() for answer in one.wrong}
    if not images:
        return "; there are none"
    return f": {len(gallery)} of {len(images):,}" if len(images) > len(gallery) else ""


def _card(answers: list[WrongAnswer], classes: tuple[str, str], targets: int) -> str:
    first = answers[0]
    name, truth, said = _short(first.name), classes[first.truth], classes[first.answer]
    picture = "" if first.pixels is None else _picture(first.pixels, f"{name}, in truth {truth}")
    where = ""
    if targets > 1:
        where = f"<br>{len(answers)} of {targets} targets"
    return (
        f"<li>{picture}<p>said <b>{escape(said)}</b>, is <b>{escape(truth)}</b><br>"
        f"exit {first.exit}, score {float(sigmoid(first.score_logit)):.4f}{where}<br>"
        f'<span class="name">{escape(name)}</span></p></li>'
    )


def _picture(pixels: Pixels, alt: str) -> str:
    uri, width, height = thumbnail(pixels)
    return f'<img src="{uri}" width="{width}" height="{height}" alt="{escape(alt)}">'


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
