import re
from fractions import Fraction
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace
from populations import honest

from cascade_calib.certify_target import Request, certify_target
from cascade_calib.report import Evidence, render_report
from cascade_calib.report_exits import exits_and_cost
from cascade_calib.report_html import amount
from cascade_runtime import manifest as m
from cascade_runtime.decision import decide

CERTIFIED, INFEASIBLE = "openvino/bf16/cpu", "onnxruntime/fp32/cpu"
ALPHAS = {CERTIFIED: "0.1", INFEASIBLE: "0.001"}
MACS = (2_000_000, 30_000_000)
VOID_TAGS = {"meta", "br", "img", "link", "input", "hr", "wbr"}


def build(
    name="night <script>alert(1)</script>", policy="certified", alphas=ALPHAS, coverage="0.2"
):
    rng = np.random.default_rng(0)
    spec = m.Preprocess(height=64, width=64)
    targets, decisions, certificates, evidence = {}, {}, {}, {}
    for target, alpha in alphas.items():
        select, calib = honest(400, rng, 2), honest(900, rng, 2)
        engines = {f"targets/{target}/stage{i}.bin": f"{i}" * 64 for i in (0, 1)}
        decisions[target], certificates[target] = certify_target(
            select,
            calib,
            stage_costs=MACS,
            request=Request(Fraction(alpha), Fraction(1, 20), Fraction(coverage), policy=policy),
            preprocess=spec,
            engines=engines,
        )
        backend, precision, device = target.split("/")
        targets[target] = m.Target(
            backend=backend,
            precision=precision,
            device=device,
            stages=tuple(m.TargetStage(files=(path,)) for path in engines),
            images_per_s=123.4,
            parity={"max_difference": 1e-4},
        )
        evidence[target] = Evidence(select, calib)
    made = m.MadeBy(
        version="0",
        command="make & do",
        git_commit="c0ffee",
        seed=0,
        created="2025-01-01T00:00:00+00:00",
        versions={},
        machine="box",
    )
    model = m.Model(
        name=name, preset="tiny", classes=("a<b", "c"), parameters=1, exits=(1, 2), data="d"
    )
    infos = tuple(
        m.StageInfo(name="s", blocks=(i, i + 1), parameters=1, macs=macs, tokens=1, width=1)
        for i, macs in enumerate(MACS)
    )
    whole = m.Manifest(
        format=m.FORMAT,
        format_version=m.FORMAT_VERSION,
        made_by=made,
        model=model,
        preprocess=spec,
        stages=infos,
        targets=targets,
        decision=decisions,
        certificates=certificates,
    )
    return whole, evidence


def words(page):
    """What a reader reads, a space where a tag was."""
    body = page[page.index("<main>") :]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture(scope="module")
def page(built):
    return render_report(*built)


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]


def test_page_is_well_formed_with_unique_ids(page):
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert len(set(balance.ids)) == len(balance.ids) > 10
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert set(used) <= set(balance.ids)


def test_promise_comes_before_every_figure(page, built):
    promise = built[0].certificates[CERTIFIED].promise.replace(" %", "\u00a0%")
    assert page.index(promise) < page.index("<svg")
    assert page.index("CERTIFIED") < page.index("INFEASIBLE") < page.index("<svg")


def test_page_carries_hashes_advice_and_what_voids_it(page, built):
    for c in built[0].certificates.values():
        assert c.calibration_sha256 in page
        assert c.binding in page
        assert all(digest in page for digest in c.engines.values())
    assert "instead of 0.001" in page
    assert "What voids the promise" in page


def test_page_needs_nothing_from_outside(page):
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert not re.search(r'(src|href)="(?!#|data:image/jpeg;base64,)', without_namespaces)
    assert "<script" not in page
    assert "@import" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.split("; ") == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
    ]


def test_names_are_escaped(page):
    assert "&lt;script&gt;alert(1)" in page
    assert "a&lt;b" in page
    assert "make &amp; do" in page


def test_same_input_gives_the_same_bytes(built, page):
    assert render_report(*built) == page


def test_no_global_plot_state_is_left_behind(built):
    import matplotlib

    before = dict(matplotlib.rcParams)
    render_report(built[0], {CERTIFIED: built[1][CERTIFIED]})
    assert dict(matplotlib.rcParams) == before


def test_targets_without_evidence_still_show_their_certificate(built):
    page = render_report(built[0], {})
    assert "<svg" not in page
    assert built[0].certificates[INFEASIBLE].calibration_sha256 in page


def test_outputs_that_are_not_finite_are_said_and_do_not_break_the_page(built):
    whole, evidence = built
    bad = honest(300, np.random.default_rng(1), 2)
    bad.exits[0].gate[:4] = np.nan
    page = render_report(whole, {CERTIFIED: Evidence(bad, evidence[CERTIFIED].calib)})
    assert "4 images gave outputs that are not finite" in page


def test_a_promised_fnr_has_its_own_figure_and_no_other_page_has(built, page):
    whole, _ = built
    promising = {
        name: replace(c, fnr_promised=0.05, fnr_upper=0.0321)
        for name, c in whole.certificates.items()
    }
    shown = render_report(replace(whole, certificates=promising), {})
    assert "positives missed" in shown
    assert "upper bound 3.21" in shown
    assert "positives missed" not in page


def test_every_exit_has_its_share_its_errors_and_its_cost(built, page):
    whole, evidence = built
    c, decision = whole.certificates[CERTIFIED], whole.decision[CERTIFIED]
    calib = evidence[CERTIFIED].calib
    verdict, wrong = decide(calib.exits, decision), wrongly_acted(decision, calib)
    assert all(c.exit_counts)
    for stage, (count, so_far) in enumerate(zip(c.exit_counts, ("2 M", "32 M"), strict=True)):
        errors = int((wrong & (verdict.stage == stage)).sum())
        row = (
            f"exit {stage} {100 * count / c.n:.3g} % {count:,} "
            f"{100 * errors / count:.3g} % {errors} {so_far}"
        )
        assert row in words(page)
    assert f"deferred {100 * (c.n - c.accepted) / c.n:.3g} % {c.n - c.accepted} – –" in words(page)


def test_mean_cost_is_that_of_the_stages_each_image_goes_through(built, page):
    c = built[0].certificates[CERTIFIED]
    first = c.exit_counts[0]
    mean = (first * MACS[0] + (c.n - first) * sum(MACS)) / c.n
    said = f"Mean multiply-adds an image: {100 * mean / sum(MACS):.3g} % of always running"
    assert said in words(page)
    assert f"with early exits {amount(mean)} always to the end 32 M" in words(page)
    assert "an image: 100 % of always running" in words(page)  # who never answers saves nothing
    assert said.replace("image: ", "image: at most ") in words(render_report(built[0], {}))


def test_cost_of_two_models_is_set_beside_the_second_alone(built):
    whole, evidence = built
    one = whole.certificates[CERTIFIED], whole.decision[CERTIFIED]
    stages = (whole.stages[0], replace(whole.stages[1], input="pixels"))
    first, n = one[0].exit_counts[0], one[0].n
    mean = (first * MACS[0] + (n - first) * sum(MACS)) / n
    said = words("<main>" + exits_and_cost(*one, stages, evidence[CERTIFIED].calib))
    assert f"with early exits {amount(mean)} always the last model 30 M" in said
    assert f"image: {100 * mean / MACS[1]:.3g} % of always running the last model" in said
    late = exits_and_cost(replace(one[0], exit_counts=(0, n)), one[1], stages, None)
    assert "at most 107 % of always running the last model" in words("<main>" + late)
    assert re.findall(r"width:([\d.]+)%", late) == ["100.0", "93.8"]  # no bar leaves its track


def test_amounts_are_said_to_three_digits():
    said = [amount(x) for x in (0, 1, 850, 999.6, 29_295_104, 999_600, 1.234e12, 5e16)]
    assert said == ["0", "1", "850", "1 k", "29.3 M", "1 M", "1.23 T", "50000 T"]


def test_the_band_says_what_was_drawn_again(built, page):
    assert "from drawing images again" in words(page)
    whole, evidence = built
    one = evidence[CERTIFIED]
    groups = tuple(f"video {i % 7}" for i in range(len(one.select)))
    grouped = {CERTIFIED: Evidence(replaced(one.select, groups=groups), one.calib)}
    assert "from drawing its 7 groups of images again" in words(render_report(whole, grouped))


def wrongly_acted(decision, data):
    verdict = decide(data.exits, decision)
    return verdict.acted & (verdict.label != data.labels)


def replaced(collected, **fields):
    return type(collected)(**{**vars(collected), **fields})


def test_the_worst_images_are_selection_images_and_never_calibration_images(built):
    whole, evidence = built
    one = evidence[CERTIFIED]
    calib = replaced(one.calib, names=tuple(f"secret-{name}" for name in one.calib.names))
    pixels = np.zeros((len(one.select), 8, 8, 3), np.uint8)
    page = render_report(whole, {CERTIFIED: Evidence(one.select, calib, pixels)})
    wrong = wrongly_acted(whole.decision[CERTIFIED], one.select)
    assert page.count('<img src="data:image/jpeg;base64,') == min(12, wrong.sum()) > 0
    assert "secret" not in page


def test_without_pixels_the_page_shows_no_image(page):
    assert "Worst images" in page
    assert "<img" not in page
    assert "data:image" not in page


@pytest.mark.parametrize("policy", ["scrc-i", "scrc-t"])
def test_set_risk_stands_beside_ambiguous_rate_and_singleton_error(policy):
    whole, _ = build(policy=policy, alphas={CERTIFIED: "0.05"}, coverage="0.7")
    c = whole.certificates[CERTIFIED]
    text = words(render_report(whole, {}))
    s = c.sets
    assert s.ambiguous
    assert c.errors
    assert f"ambiguous {100 * s.ambiguous / s.accepted:.3g} %" in text
    assert f"wrong when acting {100 * c.errors / c.accepted:.3g} %" in text
    assert f"{c.errors} of {c.accepted} images; no bound" in text
    assert f"sets without the true class {100 * s.misses / s.accepted:.3g} %" in text
    assert f"at most {100 * s.risk_upper:.3g} %" in text
    assert "about the sets, not about single answers" in text
    assert f"deferred: both classes in the set {100 * s.ambiguous / c.n:.3g} %" in text
    assert ("on average over calibration sets" in text) == (policy == "scrc-t")
    assert ("with 95 % confidence" in text) == (policy == "scrc-i")


def test_a_curve_beside_a_promise_of_sets_claims_no_bound_for_single_answers():
    whole, evidence = build(policy="scrc-i", alphas={CERTIFIED: "0.05"}, coverage="0.7")
    text = words(render_report(whole, evidence))
    assert "promised of sets: 5 %" in text
    assert "cascade, upper bound" not in text


def test_a_page_about_single_answers_does_not_speak_of_sets(page):
    assert "promised of sets" not in page
    assert "What the sets come to" not in page


@pytest.mark.parametrize("policy", ["scrc-i", "scrc-t"])
def test_sets_that_could_not_be_promised_have_a_page(policy):
    whole, _ = build(policy=policy, alphas={CERTIFIED: "0.0001"})
    assert whole.certificates[CERTIFIED].status == "INFEASIBLE"
    text = words(render_report(whole, {}))
    assert "INFEASIBLE" in text
    assert "nan" not in text
