"""What `doctor` says of a Mac: by staged facts, and by facts that it reads itself."""

from dataclasses import replace

import pytest

from mlx_manager.command_line.check import Check
from mlx_manager.command_line.mac_checks import MacFacts, checks, read_facts
from mlx_manager.mlx_server.utils.macos import Power
from tests.fake_macos import fake_mac

GB = 1024**3
M5 = MacFacts(
    chip="Apple M5 Max",
    generation="applegpu_g17s",
    system="26.2.1",
    wheel="macosx_26_0_arm64",
    memory_bytes=64 * GB,
    working_set_bytes=48 * GB,
    wired_limit_mb=0,
    power=Power(False, "nominal"),
)
M3 = replace(M5, chip="Apple M3 Max", generation="applegpu_g15s", system="14.7", wheel="macosx_14_0_arm64")


def by_name(facts: MacFacts) -> dict[str, Check]:
    return {check.name: check for check in checks(facts)}


@pytest.mark.parametrize("facts", [M5, M3, replace(M5, wheel=None)])
def test_a_chip_with_the_wheel_that_it_needs_is_ok(facts: MacFacts) -> None:
    check = by_name(facts)["chip"]
    assert (check.state, check.remedy) == ("ok", "")
    assert facts.chip in check.found
    assert facts.generation in check.found
    assert f"macOS {facts.system}" in check.found


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        (replace(M5, system="26.1"), "update to macOS 26.2"),
        (replace(M5, system="15.6", wheel="macosx_15_0_arm64"), "update to macOS 26.2"),
        (replace(M5, wheel="macosx_14_0_arm64"), "pip install --force-reinstall"),
    ],
)
def test_matrix_units_that_mlx_cannot_use_are_a_warning(facts: MacFacts, remedy: str) -> None:
    check = by_name(facts)["chip"]
    assert check.state == "warning"
    assert remedy in check.remedy


def test_the_command_that_gives_the_gpu_more_memory_leaves_some_for_the_system() -> None:
    check = by_name(M5)["GPU memory"]
    assert check.state == "ok"
    assert check.found == "48.0 GB of 64.0 GB for the GPU"
    assert check.remedy.endswith("sudo sysctl iogpu.wired_limit_mb=57344")
    raised = by_name(replace(M5, working_set_bytes=60 * GB, wired_limit_mb=61440))["GPU memory"]
    assert raised.found.endswith("(iogpu.wired_limit_mb is 61440)")
    assert raised.remedy == ""
    assert by_name(replace(M5, memory_bytes=8 * GB, working_set_bytes=5 * GB))["GPU memory"].remedy == ""


@pytest.mark.parametrize(
    ("power", "state", "remedy"),
    [
        (Power(False, "nominal"), "ok", ""),
        (Power(False, "fair"), "ok", ""),
        (Power(True, "nominal"), "warning", "Low Power Mode"),
        (Power(False, "serious"), "warning", "cool down"),
    ],
)
def test_what_slows_the_machine_down_is_a_warning(power: Power, state: str, remedy: str) -> None:
    check = by_name(replace(M5, power=power))["power"]
    assert check.state == state
    assert remedy in check.remedy
    assert power.thermal_state in check.found


def test_facts_are_those_that_the_system_and_mlx_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WIRED_LIMIT", "57344"), ("LOW_POWER", "1"), ("THERMAL_STATE", "2")):
        monkeypatch.setenv(f"FAKE_{name}", value)
    facts = read_facts(fake_mac(), "applegpu_g17s", 48 * GB, 64 * GB)
    assert facts.chip == "Apple M5 Max"
    assert facts.wired_limit_mb == 57344
    assert facts.power == Power(True, "serious")
