"""Meters count joules through wraps and samples; where there is none, the reason is told."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cascade_bench import energy, machine
from cascade_bench.energy import MeterError, Nvml, Rapl, board_watts
from cascade_runtime.engines.processor import usable_cores


def make_package(
    root: Path, number: int, microjoules: int, span: int = 1_000_000, name: str = ""
) -> Path:
    zone = root / f"intel-rapl:{number}"
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name or f'package-{number}'}\n")
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


def test_rapl_leaves_out_the_zone_that_has_the_package_within(tmp_path: Path) -> None:
    package = make_package(tmp_path, 0, 0, 10**9, "package-0")
    platform = make_package(tmp_path, 1, 0, 10**9, "psys")
    meter = Rapl(tmp_path)
    (package / "energy_uj").write_text(str(10 * 10**6))
    (platform / "energy_uj").write_text(str(18 * 10**6))
    assert meter.joules() == pytest.approx(10)
    shutil.rmtree(package)
    with pytest.raises(OSError, match="no package's counter"):
        Rapl(tmp_path)
    with pytest.raises(MeterError):
        meter.joules()


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
    """pynvml and CUDA's driver as their documentation has them, for GPUs that are not here."""

    class NVMLError(Exception):
        pass

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda place: place,
        nvmlDeviceGetName=lambda handle: f"NVIDIA Example at {handle}",
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 2500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)

    class Driver:
        status = 0

        def cuInit(self, flags: int) -> int:
            return 0

        def cuDeviceGet(self, device: Any, ordinal: int) -> int:
            device._obj.value = 7  # a handle, not the place
            return self.status

        def cuDeviceGetPCIBusId(self, place: Any, size: int, device: Any) -> int:
            place.value = f"0000:{device.value:02x}:00.0".encode()
            return 0

    module.driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: module.driver)
    return module


def test_nvml_counts_in_millijoules(nvidia: SimpleNamespace) -> None:
    meter = Nvml()
    assert meter.joules() == 2.5


def test_nvml_reads_the_gpu_that_cuda_shows_the_process(nvidia: SimpleNamespace) -> None:
    assert Nvml().gpu == machine.gpu_name() == "NVIDIA Example at 0000:07:00.0"
    nvidia.driver.status = 100  # CUDA_ERROR_NO_DEVICE
    with pytest.raises(OSError, match=r"no GPU \(error 100\)"):
        Nvml()


def test_gpu_that_does_not_count_is_a_reason(nvidia: SimpleNamespace) -> None:
    def refuse(handle: object) -> int:
        raise nvidia.NVMLError("Not Supported")

    nvidia.nvmlDeviceGetTotalEnergyConsumption = refuse
    with energy.meter(on_gpu=True) as found:
        assert "NVML: Not Supported" in str(found)


def test_gpu_that_stops_to_count_is_a_reason(nvidia: SimpleNamespace) -> None:
    def lose(_: int) -> None:
        def refuse(handle: object) -> int:
            raise nvidia.NVMLError("GPU is lost")

        meter._read = refuse

    meter = Nvml()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(energy, "METERS", {"nvml": lambda: meter})
        found = energy.measure(lose, images=1, on_gpu=True, seconds=0)
    assert (found.source, found.reason) == ("", "nvml stopped: GPU is lost")
    assert found.joules != found.joules


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 1/2MB VDD_IN 4816mW/4816mW VDD_CPU_GPU_CV 800mW/800mW", 4.816),
        ("RAM 1/2MB POM_5V_IN 2532/2532 POM_5V_GPU 40/40", 2.532),
        (
            "tj@77.281C VDD_GPU_SOC 21500mW/2971mW VDD_CPU_CV 6200mW/12415mW "
            "VIN_SYS_5V0 4836mW/5048mW NC 0mW/0mW VDDQ_VDD2_1V8AO 1091mW/1091mW NC 0mW/0mW",
            32.536,
        ),
    ],
)
def test_tegrastats_lines_of_orin_nano_and_agx_orin(line: str, watts: float) -> None:
    assert board_watts(line) == watts


def test_tegrastats_without_a_board_rail_is_told() -> None:
    with pytest.raises(OSError, match="no rail"):
        board_watts("RAM 1/2MB CPU [1%@1200]")
    with pytest.raises(OSError, match="no rail"):
        board_watts("VDD_GPU_SOC 21500mW/2971mW VIN_SYS_5V0 4836mW/5048mW")  # not all of it


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("echo 'VDD_IN ?'; exec sleep 60", "names no rail"),
        ("exit", "it has ended"),
        ("exec sleep 60", "no sample for 0.1 s"),
    ],
)
def test_tegrastats_that_stops_is_a_reason_and_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, reason: str
) -> None:
    command = tmp_path / "tegrastats"
    line = "echo 'VDD_IN 2000mW/2000mW'"
    command.write_text(f"#!/bin/sh\n{line}; sleep 0.01; {line}\n{then}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(energy, "METERS", {"tegrastats": energy.Tegrastats})
    monkeypatch.setattr(energy, "_SILENT_S", 0.1)
    found = energy.measure(lambda _: None, images=1, on_gpu=True, seconds=0.3)
    assert found.source == "" and reason in found.reason and "stopped" in found.reason
    assert found.joules != found.joules


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
