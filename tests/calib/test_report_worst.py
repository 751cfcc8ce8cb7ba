import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from populations import honest

from cascade_calib.report_worst import SHOWN, acted_on, worst_images
from cascade_runtime.decision import decide
from cascade_runtime.manifest import Decision, ExitRule

CLASSES = ("clear", "road<work")
N = 400


def cascade(*taus):
    rules = tuple(
        ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=tau)
        for tau in taus
    )
    return Decision(policy="certified", exits=rules, set_logit=0.0)


EAGER, CAREFUL, SHUT = cascade(1.5, 0.5), cascade(3.0, 2.0), cascade(None, None)


@pytest.fixture(scope="module")
def select():
    return honest(N, np.random.default_rng(0), 2)


def noise(side=16):
    return np.random.default_rng(0).integers(0, 256, (N, side, side, 3), dtype=np.uint8)


def section(select, pixels=None, **decisions):
    acted = {name: acted_on(decision, select, pixels) for name, decision in decisions.items()}
    return worst_images(acted, CLASSES)


def wrong_rows(select, decision=EAGER):
    """The wrongly acted on, the most confident first; scores of `honest` do not tie."""
    verdict = decide(select.exits, decision)
    wrong = np.flatnonzero(verdict.acted & (verdict.label != select.labels))
    return wrong[np.argsort(-verdict.score_logit[wrong])]


def names(html):
    return [unescape(name) for name in re.findall(r'<span class="name">([^<]*)</span>', html)]


def words(html):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def pictures(html):
    return re.findall(r'src="(data:image/jpeg;base64,[^"]*)"', html)


def test_the_most_confident_errors_come_first(select):
    rows = wrong_rows(select)
    assert len(rows) > SHOWN
    html = section(select, noise(), all=EAGER)
    assert names(html) == [select.names[i] for i in rows[:SHOWN]]
    assert f"the most confident first: {SHOWN} of {len(rows)}." in words(html)
    assert len(pictures(html)) == SHOWN


def test_a_card_says_answer_truth_exit_and_score(select):
    row = wrong_rows(select)[0]
    verdict = decide(select.exits, EAGER)
    score = 1 / (1 + np.exp(-float(verdict.score_logit[row])))
    truth, said = CLASSES[select.labels[row]], CLASSES[verdict.label[row]]
    card = f"said {said} , is {truth} exit {verdict.stage[row]}, score {score:.4f}"
    html = section(select, noise(), all=EAGER)
    assert f"{card} {select.names[row]}" in words(html)
    alts = [unescape(alt) for alt in re.findall(r'alt="([^"]*)"', html)]
    assert alts[0] == f"{select.names[row]}, in truth {truth}"
    assert len(set(alts)) == SHOWN


def test_a_picture_is_of_the_image_beside_it(select):
    rows, images = wrong_rows(select), noise()
    darker = images.copy()
    darker[rows[3]] //= 8
    before, after = (pictures(section(select, seen, all=EAGER)) for seen in (images, darker))
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed == [3]


def test_the_order_of_the_images_does_not_matter_even_where_scores_tie(select):
    tied = replace(
        select,
        exits=[replace(out, logits=np.sign(out.logits)) for out in select.exits],
    )
    order, images = np.random.default_rng(3).permutation(N), noise()
    shuffled = replace(
        tied,
        exits=[out.take(order) for out in tied.exits],
        labels=tied.labels[order],
        names=tuple(tied.names[i] for i in order),
    )
    html = section(tied, images, all=EAGER)
    assert len(names(html)) == SHOWN
    assert html == section(shuffled, images[order], all=EAGER)


def test_an_image_that_two_targets_get_wrong_is_shown_once(select):
    html = section(select, noise(), one=EAGER, other=CAREFUL)
    assert len(names(html)) == len(set(names(html))) == len(pictures(html)) == SHOWN
    both = set(wrong_rows(select)) & set(wrong_rows(select, CAREFUL))
    shown = {select.names.index(name) for name in names(html)}
    assert both
    assert words(html).count("2 of 2 targets") == len(both & shown)
    assert words(html).count("1 of 2 targets") == len(shown - both)
    for name, decision in (("one", EAGER), ("other", CAREFUL)):
        acted = int(decide(select.exits, decision).acted.sum())
        errors = len(wrong_rows(select, decision))
        assert f"{name} {errors} of {acted} {100 * errors / acted:.3g} %" in words(html)


def test_one_target_is_not_counted_on_every_card(select):
    assert "targets" not in words(section(select, all=EAGER, shut=SHUT))


def test_without_pixels_no_image_is_shown(select):
    html = section(select, None, all=EAGER)
    assert "<img" not in html
    assert "data:" not in html
    assert len(names(html)) == SHOWN


def test_the_pictures_keep_the_page_small_even_of_pure_noise(select):
    assert len(section(select, noise(128), a=EAGER, b=CAREFUL, c=EAGER)) < 150_000


def test_who_is_never_wrong_is_said_so_and_who_never_acts_has_no_section(select):
    right = replace(select, labels=decide(select.exits, EAGER).label.clip(0))
    html = section(right, noise(), all=EAGER)
    assert "the most confident first; there are none." in words(html)
    assert names(html) == []
    assert section(select, noise(), all=SHUT) == ""
    assert worst_images({}, CLASSES) == ""


def test_outputs_that_are_not_finite_are_no_answer(select):
    exits = [replace(out, logits=out.logits.copy()) for out in select.exits]
    first = wrong_rows(select)[0]
    for out in exits:
        out.logits[first] = (np.inf, np.nan)
    html = section(replace(select, exits=exits), noise(), all=EAGER)
    assert select.names[first] not in names(html)
    assert "nan" not in words(html)


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(sorted(key for key, _ in attrs))))
        if tag not in {"br", "img", "wbr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_file_names_cannot_write_into_the_page(select):
    hostile = [f'{i}"><img src=x onerror=alert(1)>\u202egnp.exe\n' for i in range(N)]
    hostile[wrong_rows(select)[0]] = "a/" * 200 + "last.png"
    html = section(replace(select, names=tuple(hostile)), noise(), all=EAGER)
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    images = [attrs for tag, attrs in balance.seen if tag == "img"]
    assert images == [("alt", "height", "src", "width")] * SHOWN
    assert "\u202e" not in html
    assert "onerror" in names(html)[1]
    assert names(html)[0].startswith("…")
    assert names(html)[0].endswith("a/last.png")
    assert max(len(name) for name in names(html)) == 80
