"""The checks of `doctor` for a Mac: chip and MLX's wheel, the GPU's share of the memory, and what slows it down."""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_manager.command_line.check import Check
from mlx_manager.command_line.console import format_bytes
from mlx_manager.mlx_server.utils.macos import MacOS, Power
from mlx_manager.mlx_server.utils.mlx_backend import wheel_platform

MATRIX_UNITS_GENERATION = 17
"""The GPU generation of M5, the first with matrix units."""
MATRIX_UNITS_SYSTEM = (26, 2)
LEAST_SYSTEM_BYTES = 6 * 1024**3
SYSTEM_PART = 8
"""The system and other programs keep 6 GB, or an eighth of the memory if that is more."""


@dataclass(frozen=True, slots=True)
class MacFacts:
    """`wheel` is the platform tag of MLX's wheel. `wired_limit_mb` is 0 unless someone has set it."""

    chip: str
    generation: str
    system: str
    wheel: str | None
    memory_bytes: int
    working_set_bytes: int
    wired_limit_mb: int
    power: Power


def read_facts(mac: MacOS, generation: str, working_set_bytes: int, memory_bytes: int) -> MacFacts:
    """`generation` and `working_set_bytes` are what MLX reports of its device."""
    return MacFacts(
        chip=mac.sysctl_text("machdep.cpu.brand_string") or "unknown chip",
        generation=generation,
        system=platform.mac_ver()[0],
        wheel=wheel_platform("mlx-metal"),
        memory_bytes=memory_bytes,
        working_set_bytes=working_set_bytes,
        wired_limit_mb=mac.sysctl_number("iogpu.wired_limit_mb") or 0,
        power=mac.power(),
    )


def checks(facts: MacFacts) -> Iterator[Check]:
    yield _chip(facts)
    yield _working_set(facts)
    yield _power(facts.power)


def _chip(facts: MacFacts) -> Check:
    wheel = f"MLX's wheel is {facts.wheel}" if facts.wheel is not None else "MLX was built from source"
    found = f"{facts.chip} ({facts.generation}), macOS {facts.system}, {wheel}"
    generation = re.search(r"_g(\d+)", facts.generation)
    if generation is None or int(generation[1]) < MATRIX_UNITS_GENERATION:
        return Check("chip", "ok", found)
    if _version(facts.system) < MATRIX_UNITS_SYSTEM:
        return Check("chip", "warning", found, "update to macOS 26.2: MLX uses this chip's matrix units only there")
    if facts.wheel is not None and _version(facts.wheel)[0] < MATRIX_UNITS_SYSTEM[0]:
        remedy = (
            "pip install --force-reinstall --no-cache-dir mlx mlx-metal: only the wheel for macOS 26 uses this chip's "
            "matrix units. If pip chooses the old one again, install a newer Python"
        )
        return Check("chip", "warning", found, remedy)
    return Check("chip", "ok", found)


def _version(text: str) -> tuple[int, ...]:
    """(26, 2) of `26.2.1` and of `macosx_26_2_arm64`; (0, 0) of a text without numbers."""
    numbers = re.findall(r"\d+", text.replace("arm64", ""))
    return tuple(map(int, numbers[:2])) if numbers else (0, 0)


def _working_set(facts: MacFacts) -> Check:
    """How much memory Metal lets the GPU use, and the command that raises it."""
    limit = "" if not facts.wired_limit_mb else f" (iogpu.wired_limit_mb is {facts.wired_limit_mb})"
    found = f"{format_bytes(facts.working_set_bytes)} of {format_bytes(facts.memory_bytes)} for the GPU{limit}"
    possible = facts.memory_bytes - max(LEAST_SYSTEM_BYTES, facts.memory_bytes // SYSTEM_PART)
    if possible <= facts.working_set_bytes:
        return Check("GPU memory", "ok", found)
    command = f"sudo sysctl iogpu.wired_limit_mb={possible // 1024**2}"
    return Check("GPU memory", "ok", found, f"to raise it until the next restart: {command}")


def _power(power: Power) -> Check:
    found = f"Low Power Mode {'on' if power.low_power else 'off'}, thermal state {power.thermal_state}"
    if power.low_power:
        return Check("power", "warning", found, "turn off Low Power Mode in System Settings, Battery: it slows the GPU")
    if power.thermal_state in ("serious", "critical"):
        return Check("power", "warning", found, "let the machine cool down: the system slows it")
    return Check("power", "ok", found)
