"""The shared populations and the small bundle, importable by name; and the bundle once made."""

import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def casts(tmp_path_factory):
    """Folders of images (`select`, `calib`, `more`, `test`, `today`, `dusk`), uncertified bundles.

    `one.cascade` has one target, `two.cascade` two.
    """
    from tiny_bundle import ONNX, OPENVINO, write_bundle, write_images

    folder = tmp_path_factory.mktemp("casts")
    for seed, (name, n) in enumerate([("select", 300), ("calib", 700), ("test", 500)]):
        write_images(folder / name, n, seed)
    write_images(folder / "more", 700, 4)
    write_images(folder / "today", 300, 5, flat=True)
    write_images(folder / "dusk", 300, 6, dusk=0.5, flat=True)
    write_bundle(folder / "one.cascade")
    write_bundle(folder / "two.cascade", (ONNX, OPENVINO))
    return folder


@pytest.fixture(scope="session")
def certified_casts(casts):
    """`one.cascade`, certified at its own alpha; shared, not to be changed."""
    from cascade_calib.recertify import RecertifyRequest, recertify

    path = casts / "certified.cascade"
    shutil.copytree(casts / "one.cascade", path)
    request = RecertifyRequest(path, str(casts / "calib"), select=str(casts / "select"), threads=1)
    recertify(request, say=lambda line: None)
    return path
