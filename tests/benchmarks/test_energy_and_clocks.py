"""Meters count joules through wraps and samples; where there is none, the reason is told."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cascade_bench import energy, machine
from cascade_bench.energy import Nvml, Rapl, board_watts
from cascade_runtime.engines.processor import usable_cores


def make_package(root: Path, number: int, microjoules: int, span: int = 1_000_000) -> Path:
    zone = root / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "max_energy_range_uj").write_text(f"{span}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    first, second = make_package(tmp_path, 0, 900_000), make_package(tmp_path, 1, 100)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of a package, counted with it
    meter = Rapl(tmp_path)
    (first / "energy_uj").write_text("100000")
    (second / "energy_uj").write_text("50100")
    assert meter.joules() == pytest.approx(0.2 + 0.05)
    (second / "energy_uj").write_text("60100")
    assert meter.joules() == pytest.approx(0.26)


def test_energy_of_work_is_what_the_counter_grew_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = make_package(tmp_path, 0, 0, span=10**12)
    monkeypatch.setattr(energy, "METERS", {"rapl": lambda: Rapl(tmp_path)})

    def work(_: int) -> None:
        was = int((zone / "energy_uj").read_text())
        (zone / "energy_uj").write_text(str(was + 500_000))

    found = energy.measure(work, images=4, on_gpu=False, seconds=0)
    assert (found.source, found.reason, found.images) == ("rapl", "", 12)
    assert found.joules == pytest.approx(1.5)
    assert found.joules_per_image == pytest.approx(0.125)
    assert found.watts == pytest.approx(1.5 / found.seconds)


def test_no_meter_is_a_reason_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "METERS", {"rapl": lambda: Rapl(tmp_path)})
    called: list[int] = []
    found = energy.measure(called.append, images=1, on_gpu=False, seconds=0)
    assert found.source == "" and "no package's counter" in found.reason
    assert found.joules != found.joules and called == []


def test_a_gpu_is_never_charged_to_the_processor() -> None:
    with energy.meter(on_gpu=True) as found:
        assert "rapl" not in str(found)


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """pynvml as its documentation has it, for a GPU that is not here."""

    class NVMLError(Exception):
        pass

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA Example",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_nvml_counts_in_millijoules(nvidia: SimpleNamespace) -> None:
    meter = Nvml()
    assert meter.joules() == 2.5 and meter.gpu == "NVIDIA Example"
    assert machine.gpu_name() == "NVIDIA Example"


def test_gpu_that_does_not_count_is_a_reason(nvidia: SimpleNamespace) -> None:
    def refuse(handle: object) -> int:
        raise nvidia.NVMLError("Not Supported")

    nvidia.nvmlDeviceGetTotalEnergyConsumption = refuse
    with energy.meter(on_gpu=True) as found:
        assert "NVML: Not Supported" in str(found)


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 1/2MB VDD_IN 4816mW/4816mW VDD_CPU_GPU_CV 800mW/800mW", 4.816),
        ("RAM 1/2MB POM_5V_IN 2532/2532 POM_5V_GPU 40/40", 2.532),
    ],
)
def test_tegrastats_lines_of_orin_and_nano(line: str, watts: float) -> None:
    assert board_watts(line) == watts


def test_tegrastats_without_a_board_rail_is_told() -> None:
    with pytest.raises(OSError, match="no rail"):
        board_watts("RAM 1/2MB CPU [1%@1200]")


def test_tegrastats_is_sampled_while_the_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "tegrastats"
    command.write_text("#!/bin/sh\nwhile echo 'VDD_IN 2000mW/2000mW'; do sleep 0.01; done\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(energy, "METERS", {"tegrastats": energy.Tegrastats})
    found = energy.measure(lambda _: None, images=1, on_gpu=True, seconds=0.3)
    assert found.source == "tegrastats" and found.watts == pytest.approx(2, rel=0.3)


def test_clocks_are_those_of_the_usable_cores(tmp_path: Path) -> None:
    core = usable_cores()[0]
    folder = tmp_path / f"cpu{core}" / "cpufreq"
    folder.mkdir(parents=True)
    values = {"governor": "powersave", "cur_freq": 1500000, "min_freq": 400000, "max_freq": 3200000}
    for name, value in values.items():
        (folder / f"scaling_{name}").write_text(f"{value}\n")
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate" / "no_turbo").write_text("0\n")
    found = machine.clocks(tmp_path)
    assert found == machine.Clocks("", ("powersave",), (1500.0,), 400.0, 3200.0, True)


def test_machine_without_cpufreq_says_so(tmp_path: Path) -> None:
    assert "no cpufreq" in machine.clocks(tmp_path).reason
