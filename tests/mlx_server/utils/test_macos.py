"""Calls into macOS, over C's calling conventions to a library with the same functions (`fake_macos.c`).

Where the tests run on a Mac, the system's own functions are called too.
"""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from mlx_manager.mlx_server.utils.macos import MacOS, MemoryPressure, Power, SleepBlocker, this_mac
from tests.fake_macos import fake_library, fake_mac
from tests.running_server import eventually


@pytest.fixture
def mac() -> MacOS:
    return fake_mac()


@pytest.mark.parametrize(
    ("level", "pressure"),
    [
        ("1", MemoryPressure.NORMAL),
        ("2", MemoryPressure.WARNING),
        ("4", MemoryPressure.CRITICAL),
        ("8", MemoryPressure.NORMAL),
        ("-1", MemoryPressure.NORMAL),
    ],
    ids=["normal", "warning", "critical", "unknown", "no such sysctl"],
)
def test_memory_pressure_is_the_systems(
    mac: MacOS, level: str, pressure: MemoryPressure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PRESSURE", level)
    assert mac.memory_pressure() is pressure


def test_sysctls_are_numbers_and_texts_and_unknown_ones_are_none(mac: MacOS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WIRED_LIMIT", "57344")
    assert mac.sysctl_number("iogpu.wired_limit_mb") == 57344
    assert mac.sysctl_text("machdep.cpu.brand_string") == "Apple M5 Max"
    assert mac.sysctl_number("no.such") is None


def test_the_footprint_is_read_from_its_place_in_the_systems_record(mac: MacOS) -> None:
    assert mac.footprint_bytes(3) == 3 << 32
    assert mac.footprint_bytes(-1) is None


def test_the_thread_gets_the_class_of_work_that_a_user_waits_for(mac: MacOS) -> None:
    mac.prefer_fast_cores()
    assert ctypes.c_uint.in_dll(fake_library(), "qos_class").value == 0x19
    assert ctypes.c_int.in_dll(fake_library(), "qos_priority").value == 0


@pytest.mark.parametrize(
    ("low_power", "state", "power"),
    [("0", "0", Power(False, "nominal")), ("1", "3", Power(True, "critical")), ("0", "7", Power(False, "unknown (7)"))],
)
def test_power_and_heat_are_those_of_process_info(
    mac: MacOS, low_power: str, state: str, power: Power, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOW_POWER", low_power)
    monkeypatch.setenv("FAKE_THERMAL_STATE", state)
    assert mac.power() == power


def test_sleep_is_blocked_by_one_process_until_it_is_released(tmp_path: Path) -> None:
    program, started = tmp_path / "caffeinate", tmp_path / "started"
    program.write_text(f'#!/bin/sh\necho "$$ $*" >> {started}\nexec sleep 1000\n')
    program.chmod(0o755)
    blocker = SleepBlocker(1234, str(program))
    blocker.block()
    blocker.block()
    pid, *arguments = eventually(lambda: started.read_text().split() if started.exists() else [], bool)
    assert arguments == ["-i", "-w", "1234"]
    blocker.release()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    blocker.block()
    eventually(lambda: len(started.read_text().splitlines()), lambda lines: lines == 2)
    blocker.release()
    blocker.release()


def test_a_machine_without_caffeinate_is_served_all_the_same(tmp_path: Path) -> None:
    blocker = SleepBlocker(1234, str(tmp_path / "missing"))
    blocker.block()
    blocker.release()


@pytest.mark.skipif(sys.platform == "darwin", reason="for other systems")
def test_other_systems_are_not_asked() -> None:
    assert this_mac() is None


@pytest.mark.skipif(sys.platform != "darwin", reason="asks macOS itself")
def test_macos_itself_answers() -> None:
    mac = this_mac()
    assert mac is not None
    assert mac.memory_pressure() in MemoryPressure
    assert (mac.footprint_bytes(os.getpid()) or 0) > 2**20
    assert "Apple" in (mac.sysctl_text("machdep.cpu.brand_string") or "")
    assert mac.power().thermal_state in ("nominal", "fair", "serious", "critical")
    mac.prefer_fast_cores()
