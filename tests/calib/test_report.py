import re
from fractions import Fraction
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace
from populations import honest

from cascade_calib.certify_target import Request, certify_target
from cascade_calib.report import Evidence, render_report
from cascade_runtime import manifest as m

CERTIFIED, INFEASIBLE = "openvino/bf16/cpu", "onnxruntime/fp32/cpu"
VOID_TAGS = {"meta", "br", "img", "link", "input", "hr"}


def build(name="night <script>alert(1)</script>"):
    rng = np.random.default_rng(0)
    spec = m.Preprocess(height=64, width=64)
    targets, decisions, certificates, evidence = {}, {}, {}, {}
    for target, alpha in ((CERTIFIED, "0.1"), (INFEASIBLE, "0.001")):
        select, calib = honest(400, rng, 2), honest(900, rng, 2)
        engines = {f"targets/{target}/stage{i}.bin": f"{i}" * 64 for i in (0, 1)}
        decisions[target], certificates[target] = certify_target(
            select,
            calib,
            stage_costs=(1.0, 1.0),
            request=Request(Fraction(alpha), Fraction(1, 20), Fraction(1, 5)),
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
    info = m.StageInfo(name="s", blocks=(0, 1), parameters=1, macs=1, tokens=1, width=1)
    whole = m.Manifest(
        format=m.FORMAT,
        format_version=m.FORMAT_VERSION,
        made_by=made,
        model=model,
        preprocess=spec,
        stages=(info, info),
        targets=targets,
        decision=decisions,
        certificates=certificates,
    )
    return whole, evidence


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
    assert not re.search(r'(src|href)="(?!#)', without_namespaces)
    assert "<script" not in page
    assert "@import" not in page


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
