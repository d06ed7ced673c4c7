"""Detects the installed build of MLX (CPU, CUDA or Metal) from files and package records. Does not import MLX."""

import functools
import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

_BUILDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal")
"""The distributions with the library. On Linux each of them installs `mlx/lib/libmlx.so`."""
_LIBRARY = "mlx/lib/libmlx.so"


@functools.cache
def installed_builds() -> tuple[str, ...]:
    """The installed distributions. Several distributions overwrite each other's files."""
    return tuple(name for name in _BUILDS if _distribution(name) is not None)


@functools.cache
def build_in_place() -> str | None:
    """The distribution whose library is in MLX's folder. None for a build from source."""
    builds = installed_builds()
    return builds[0] if len(builds) == 1 else next(filter(_wrote_the_library, builds), None)


@functools.cache
def computes_on_cpu() -> bool:
    """Whether workers compute on the CPU, and then hold their weights in float32."""
    build = build_in_place()
    return sys.platform == "linux" and (build is None or "cuda" not in build)


def why_mlx_cannot_run() -> str | None:
    """The message for a Linux installation without MLX's library. None if MLX can be imported."""
    if sys.platform != "linux" or not _library_is_missing():
        return None
    if shutil.which("nvidia-smi") is not None:
        return (
            f"MLX is installed without a backend. Run {install_command('cuda13')} (cuda12 for CUDA 12, cpu for none)."
        )
    return f"MLX is installed without a backend. Run {install_command('cpu')} (cuda12 or cuda13 for an NVIDIA GPU)."


def why_builds_conflict() -> str | None:
    """The fault of several builds in one environment, and the remedy. None for at most one build."""
    builds = installed_builds()
    if sys.platform != "linux" or len(builds) < 2:
        return None
    return (
        f"{' and '.join(builds)} overwrite each other; the MLX library in use is from {build_in_place() or 'neither'}. "
        f"Keep one: pip uninstall -y {' '.join(builds)} && {install_command(extra_of(builds[-1]))}."
    )


def install_command(extra: str) -> str:
    return f"pip install 'mlx-manager[{extra}]'"


def extra_of(build: str) -> str:
    """`cuda13` for `mlx-cuda-13`."""
    return build.removeprefix("mlx-").replace("-", "")


def wheel_platform(distribution: str) -> str | None:
    """The platform of the wheel that was installed, such as `macosx_14_0_arm64`. None for a build from source."""
    found = _distribution(distribution)
    wheel = (found.read_text("WHEEL") if found is not None else None) or ""
    tags = [line.partition(":")[2].strip() for line in wheel.splitlines() if line.startswith("Tag:")]
    return tags[0].rpartition("-")[2] if tags else None


def _library_is_missing() -> bool:
    """A build from source may link all of MLX into `core`, which then does not name the library."""
    spec = importlib.util.find_spec("mlx")
    places = [Path(place) for place in spec.submodule_search_locations or ()] if spec is not None else []
    if any((place / "lib" / "libmlx.so").is_file() for place in places):
        return False
    return all(b"libmlx.so" in core.read_bytes() for place in places for core in place.glob("core*.so"))


def _wrote_the_library(build: str) -> bool:
    """Compares the file's size with the distribution's record; the builds differ in size."""
    distribution = _distribution(build)
    for file in (distribution.files if distribution is not None else None) or ():
        if str(file) == _LIBRARY:
            library = Path(str(file.locate()))
            return library.is_file() and library.stat().st_size == file.size
    return False


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
