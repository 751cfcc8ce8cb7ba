"""What a certificate says to a person: the promise, or what would make one possible.

In: the request and what was observed. Out: sentences with the actual numbers in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from cascade_calib.arrays import Int64
from cascade_calib.bounds import at_least, clopper_pearson_upper, images_needed, least_accepted
from cascade_calib.collect import Collected
from cascade_calib.path import Request, Thresholds, Walk, always
from cascade_runtime.decision import decide_exit
from cascade_runtime.errors import ConfigError
from cascade_runtime.manifest import ExitRule

NO_PROMISE = "No promise could be proven, so this engine defers every image."
_SECOND_TEST = (
    "These are estimates for planning: asking the same calibration images again is a second test "
    "and needs a share of delta of its own; fresh images do not."
)
_HOPELESS = "No number of images and no alpha helps that: the model has to be better."


def percent(share: float | Fraction, digits: int = 3) -> str:
    """A share as "0.5 %", to so many significant digits."""
    return f"{100 * float(share):.{digits}g} %"


def promise(request: Request, which: str = "this engine acts on") -> str:
    """The proven statement, in one sentence; `which` images it is about."""
    missed = ""
    if request.fnr is not None:
        missed = f"and of the positives among them at most {percent(request.fnr, 6)} are missed, "
    return (
        f"Of the images {which}, at most {percent(request.alpha, 6)} are wrong, "
        f"{missed}with {percent(1 - request.delta, 6)} confidence over the draw of the "
        "calibration images"
        + (f", for all {request.claims} targets at once." if request.claims > 1 else ".")
    )


def set_promise(request: Request) -> str:
    """What SCRC proves of a cascade's prediction sets, in one or two sentences."""
    held = (
        f"Of the images this engine accepts, at most {percent(request.alpha, 6)} have a prediction "
        "set without their true class"
    )
    if request.policy == "scrc-t":
        return f"{held}, on average over calibration sets and images."
    sure = f"with {percent(1 - request.delta, 6)} confidence"
    many = f", for all {request.claims} targets at once" if request.claims > 1 else ""
    return (
        f"{held}, {sure} over the draw of the calibration images{many}; it accepts at least "
        f"{percent(request.coverage, 6)} of images, with the same confidence."
    )


def set_advice(request: Request, n: int, lost: int) -> str:
    """Why no sets could be promised, and what would change that, in a few sentences.

    Args:
        n: calibration images; lost: of them, those whose outputs are not finite.
    """
    if request.policy == "scrc-i" and request.coverage == 1:
        return "That every image is accepted cannot be proven: ask for less coverage."
    least = at_least(1 / request.alpha, 1) - 1  # accepted, for one error to be allowed
    if request.policy == "scrc-i":
        least = least_accepted(request.alpha, request.share)
    accepted = at_least(request.coverage, n)
    parts = []
    if lost:
        parts.append(
            f"{lost} of {n} calibration images give outputs that are not finite, which no set "
            "covers: look into those."
        )
    if accepted < least:
        more = at_least(1 / request.coverage, least) - n
        reachable = float(human_alpha(1 / (accepted + 1)))
        if request.policy == "scrc-i":
            reachable = float(human_alpha(clopper_pearson_upper(0, accepted, request.share)))
        parts.append(
            f"Of {n} images about {accepted} are accepted, and this takes {least:,} even without "
            f"an error: label about {more:,} more, or ask for an alpha of {reachable:g}."
        )
    if not parts:
        parts.append(
            "Too many images share the score at which the accepted are cut off, and a tie is never "
            "split: use more images, or a score with finer values."
        )
    return " ".join([*parts, _SECOND_TEST])


def human_alpha(bound: float) -> Fraction:
    """The bound rounded up to two significant digits, as a person would type it."""
    exponent = 1 - math.floor(math.log10(bound)) if bound > 0 else 2
    scale = Fraction(10) ** exponent
    return Fraction(math.ceil(Fraction(bound) * scale)) / scale


def advice(
    select: Collected,
    calib: Collected,
    rules: Sequence[ExitRule],
    path: Sequence[Thresholds],
    result: Walk,
    request: Request,
) -> str:
    """Why nothing was certified, and what would change that, in two or three sentences."""
    n = len(calib)
    if not n or not len(select):
        return "There are no images to select or to calibrate on; label some first."
    if not path:
        return _unreachable(select, rules, request)
    floor = max(1, at_least(request.coverage, n))
    wide = np.flatnonzero(result.outcomes.accepted >= floor)
    if not len(wide):
        most = int(result.outcomes.accepted.max())
        return (
            f"No proposed threshold acts on {percent(request.coverage)} of the {n} calibration "
            f"images; the widest acts on {percent(most / n)}. Ask for a lower coverage, or check "
            f"that the calibration images are drawn as the selection images are. {_SECOND_TEST}"
        )
    first = int(wide[0])
    k, e = int(result.outcomes.accepted[first]), int(result.outcomes.errors[first])
    seen = (
        f"The safest thresholds with the coverage asked for act on {k} of {n} calibration images "
        f"and are wrong on {e} ({percent(e / k)})"
    )
    if k < (least := least_accepted(request.alpha, request.share)):
        seen += f", and a proof takes {least:,} even without an error"
    out, prefix = result.outcomes, slice(first + 1)
    parts = [
        ("it", "alpha", request.alpha, out.errors[prefix], out.accepted[prefix], result.p_values)
    ]
    if request.fnr is not None and out.missed is not None and out.positives is not None:
        missed, positives = out.missed[prefix], out.positives[prefix]
        seen += f"; of the {positives[first]} positives among these they miss {missed[first]}"
        if positives[first] < (least := least_accepted(request.fnr, request.share)):
            seen += f", and a proof takes {least:,} positives even if none is missed"
        p_fnr = np.ones(first + 1) if result.fnr_p_values is None else result.fnr_p_values
        parts.append(("the FNR", "an FNR", request.fnr, missed, positives, p_fnr))
        parts = [part for part in parts if (part[5][prefix] > float(request.share)).any()]
    ways = [_ways(*part[:5], request.share, n) for part in parts]
    return " ".join([f"{seen}.", *ways, _SECOND_TEST] if all(ways) else [f"{seen}.", _HOPELESS])


def _ways(
    what: str,
    name: str,
    promised: Fraction,
    errors: Int64,
    accepted: Int64,
    share: Fraction,
    n: int,
) -> str:
    """What would make one promise pass on the last of these vectors; "" where nothing would."""
    e, k = int(errors[-1]), int(accepted[-1])
    upper = max(
        clopper_pearson_upper(int(err), int(acc), share)
        for err, acc in zip(errors, accepted, strict=True)
    )
    ways = []
    if found := _more_images(promised, share, n, k, e):
        more, rate = found
        ways.append(
            f"about {more:,} more labelled calibration images (if {percent(rate, 2)} is the true "
            "error rate)"
        )
    if upper < 1:
        reachable = float(human_alpha(upper))
        ways.append(
            f"{name} of {reachable:g} ({percent(reachable, 6)}) instead of {float(promised):g}"
        )
    return f"What would make {what} pass: {', or '.join(ways)}." if ways else ""


def _unreachable(select: Collected, rules: Sequence[ExitRule], request: Request) -> str:
    return (
        f"At most {percent(_widest(select, rules))} of the selection images can be acted on at all "
        "(the rest tie between the classes or give outputs that are not finite), below the "
        f"coverage of {percent(request.coverage)} asked for; look into those images, or ask for "
        "less."
    )


def _widest(select: Collected, rules: Sequence[ExitRule]) -> float:
    """The share of images on which some exit can give a single answer."""
    able = np.zeros(len(select), dtype=np.bool_)
    for out, rule in zip(select.exits, rules, strict=True):
        able |= decide_exit(out, always(rule), 0).acted
    return float(able.mean())


def _more_images(
    promised: Fraction, share: Fraction, n: int, k: int, e: int
) -> tuple[int, float] | None:
    """How many more images at the observed coverage and which error rate; None: none would do.

    The rate counts half an error more than was seen (none seen does not mean that none will be),
    unless so few images were seen that this alone would come near alpha.
    """
    if not k:
        return None
    careful, plain = (e + 0.5) / (k + 1), e / k
    rate = careful if 2 * careful < promised else plain
    try:
        plan = images_needed(promised, share, k / n, rate)
    except ConfigError:
        return None
    return max(plan.images - n, 1), rate
