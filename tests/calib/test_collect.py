from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cascade_calib.collect import collect
from cascade_calib.evaluate import evaluate, in_the_classes_of
from cascade_calib.labelled import Loaded, load_pixels, read_labelled
from cascade_runtime.decision import ExitOutputs
from cascade_runtime.errors import DataError
from cascade_runtime.manifest import Certificate, Decision, ExitRule, Preprocess


class Brightness:
    """Two exits that tell bright from dark images; remembers the batches it was given."""

    def __init__(self):
        self.batches = []

    def forward_all(self, pixels):
        self.batches.append(len(pixels))
        m = (pixels.astype(np.float32).mean(axis=(1, 2, 3)) - 128) / 10
        logits = np.stack([-m / 2, m / 2], axis=1)
        return [ExitOutputs(logits, np.abs(m)), ExitOutputs(2 * logits, np.abs(m))]


def photos(folder, n=10):
    for name, base in (("dark", 20), ("light", 200)):
        (folder / name).mkdir()
        for i in range(n):
            Image.new("RGB", (12, 10), (base + i,) * 3).save(folder / name / f"{i}.png")
    return folder


def loaded(n):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return Loaded(pixels, np.arange(n, dtype=np.int8) % 2, tuple(map(str, range(n))), None)


def test_every_exit_sees_every_image_in_order_whatever_the_batch_size():
    images, told = loaded(10), []
    whole = collect(Brightness(), images)
    stages = Brightness()
    parts = collect(stages, images, lambda *step: told.append(step), batch_size=4)
    assert stages.batches == [4, 4, 2]
    assert told == [("images", 4, 10), ("images", 8, 10), ("images", 10, 10)]
    assert len(parts) == 10
    for a, b in zip(whole.exits, parts.exits, strict=True):
        assert (a.logits == b.logits).all()
        assert (a.gate == b.gate).all()
    assert parts.content_sha256 == whole.content_sha256
    assert parts.not_finite == 0


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="empty"):
        collect(Brightness(), loaded(0))


def test_evaluate_reads_files_and_reports_the_unreadable_one(tmp_path):
    folder = photos(tmp_path)
    (folder / "light" / "broken.png").write_bytes(b"not an image")
    rule = ExitRule(score="softmax", platt_a=1.0, platt_b=0.0, temperature=1.0, tau_logit=1.0)
    spec = Preprocess(height=4, width=4)
    cascade = SimpleNamespace(
        preprocess=spec,
        stages=Brightness(),
        decision=Decision(policy="certified", exits=(rule, rule), set_logit=0.0),
        certificate=_certificate(),
        target="t",
        manifest=SimpleNamespace(model=SimpleNamespace(classes=("dark", "light"))),
    )
    result = evaluate(cascade, read_labelled(folder), batch_size=7)
    assert (result.images, result.skipped) == (20, 1)
    assert (result.coverage.part, result.risk.part) == (20, 0)
    assert (
        result.content_sha256
        == collect(Brightness(), load_pixels(read_labelled(folder), spec)).content_sha256
    )


def test_classes_are_matched_by_name_and_never_guessed(tmp_path):
    images = read_labelled(photos(tmp_path))
    assert in_the_classes_of(images, ("dark", "light")) is images
    turned = in_the_classes_of(images, ("light", "dark"))
    assert (turned.labels == 1 - images.labels).all()
    assert turned.classes == ("light", "dark")
    with pytest.raises(DataError, match="'dark' and 'light', the bundle answers 'cat' or 'dog'"):
        in_the_classes_of(images, ("cat", "dog"))


def _certificate():
    return Certificate(
        status="CERTIFIED",
        method="",
        promise="",
        advice="",
        alpha=0.1,
        delta=0.1,
        coverage_floor=0.5,
        n=1,
        accepted=1,
        errors=0,
        risk_upper=1.0,
        coverage=1.0,
        coverage_lower=0.0,
        exit_counts=(1, 0),
        class_errors=(0, 0),
        class_accepted=(1, 0),
        path_length=1,
        path_tested=1,
        calibration_sha256="",
        calibration_uses=1,
        engines={},
        binding="",
    )
