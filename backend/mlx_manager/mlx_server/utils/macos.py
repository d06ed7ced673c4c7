"""Calls into macOS: memory pressure and footprint, quality of service, thermal state and sleep. Imports no MLX."""

import contextlib
import ctypes
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

_FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"
_QOS_USER_INITIATED = 0x19
_RUSAGE_INFO_V0 = 0
_THERMAL_STATES = ("nominal", "fair", "serious", "critical")


class MemoryPressure(IntEnum):
    """The levels of `kern.memorystatus_vm_pressure_level`."""

    NORMAL = 1
    WARNING = 2
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class Power:
    """What slows the machine down. `thermal_state` is one of nominal, fair, serious and critical."""

    low_power: bool
    thermal_state: str


class _RusageInfo(ctypes.Structure):
    """`struct rusage_info_v0` of <sys/resource.h>."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("idle_wakeups", ctypes.c_uint64),
        ("interrupt_wakeups", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("wired_bytes", ctypes.c_uint64),
        ("resident_bytes", ctypes.c_uint64),
        ("footprint_bytes", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("exit_time", ctypes.c_uint64),
    )


class MacOS:
    """The system's libraries. A call that fails gives None, or has no effect: none of them is needed to serve."""

    def __init__(self, system: ctypes.CDLL, foundation: Callable[[], ctypes.CDLL]) -> None:
        """`foundation` loads the Objective-C runtime with Foundation; only `power` needs it."""
        self._system = system
        self._foundation = foundation

    def sysctl_number(self, name: str) -> int | None:
        value = self._sysctl(name)
        return None if value is None else int.from_bytes(value, sys.byteorder)

    def sysctl_text(self, name: str) -> str | None:
        value = self._sysctl(name)
        return None if value is None else value.rstrip(b"\0").decode("utf-8", "replace")

    def memory_pressure(self) -> MemoryPressure:
        level = self.sysctl_number("kern.memorystatus_vm_pressure_level")
        with contextlib.suppress(ValueError):  # a level that this version of macOS has added
            return MemoryPressure(level if level is not None else MemoryPressure.NORMAL)
        return MemoryPressure.NORMAL

    def footprint_bytes(self, pid: int) -> int | None:
        """The memory that the system charges to the process. Unlike the resident size it includes the GPU's."""
        info = _RusageInfo()
        if self._system.proc_pid_rusage(ctypes.c_int(pid), ctypes.c_int(_RUSAGE_INFO_V0), ctypes.byref(info)) != 0:
            return None
        return int(info.footprint_bytes)

    def prefer_fast_cores(self) -> None:
        """Keeps the calling thread off the efficiency cores, where work of a lower class runs."""
        self._system.pthread_set_qos_class_self_np(ctypes.c_uint(_QOS_USER_INITIATED), ctypes.c_int(0))

    def power(self) -> Power:
        """As NSProcessInfo reports it."""
        objc = self._foundation()
        process_info = _send(objc, _class(objc, b"NSProcessInfo"), b"processInfo", ctypes.c_void_p)
        low_power = _send(objc, process_info, b"isLowPowerModeEnabled", ctypes.c_bool)
        state = _send(objc, process_info, b"thermalState", ctypes.c_long)
        known = 0 <= state < len(_THERMAL_STATES)
        return Power(bool(low_power), _THERMAL_STATES[state] if known else f"unknown ({state})")

    def _sysctl(self, name: str) -> bytes | None:
        size = ctypes.c_size_t(0)
        encoded = ctypes.c_char_p(name.encode())
        if self._system.sysctlbyname(encoded, None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
            return None
        value = ctypes.create_string_buffer(size.value)
        if self._system.sysctlbyname(encoded, value, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
            return None
        return value.raw[: size.value]


class SleepBlocker:
    """Keeps the machine from idle sleep with the system's `caffeinate`, which also ends with this process."""

    def __init__(self, pid: int, program: str = "/usr/bin/caffeinate") -> None:
        self._command = (program, "-i", "-w", str(pid))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process that blocks. None while none does."""
        return None if self._process is None else self._process.pid

    def block(self) -> None:
        """Starts to block, unless it blocks. Without the tool it has no effect."""
        if self._process is not None and self._process.poll() is None:
            return
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )

    def release(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def this_mac() -> MacOS | None:
    """None on other systems."""
    if sys.platform != "darwin":
        return None
    return MacOS(ctypes.CDLL(None), _load_foundation)


def _load_foundation() -> ctypes.CDLL:
    ctypes.CDLL(_FOUNDATION)
    return ctypes.CDLL("/usr/lib/libobjc.A.dylib")


def _class(objc: ctypes.CDLL, name: bytes) -> int | None:
    find = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(("objc_getClass", objc))
    found: int | None = find(name)
    return found


def _send(objc: ctypes.CDLL, receiver: int | None, selector: bytes, result: type[Any]) -> Any:
    register = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(("sel_registerName", objc))
    send = ctypes.CFUNCTYPE(result, ctypes.c_void_p, ctypes.c_void_p)(("objc_msgSend", objc))
    return send(receiver, register(selector))
