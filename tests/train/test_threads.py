"""The spinning of OpenMP threads is bounded, unless the user decided."""

from __future__ import annotations

import os

import pytest

from cascade_train.threads import SPINS, spin_briefly


@pytest.mark.parametrize(
    ("already", "wanted"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_what_the_user_set_stays(
    already: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in already.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == wanted
