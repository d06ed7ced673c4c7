"""The device that a worker computes on, and where a GPU's compiled kernels are kept. Runs in the worker."""

import importlib.metadata
import logging
import os

import mlx.core as mx

from mlx_manager.mlx_server.engine.messages import Device
from mlx_manager.mlx_server.utils.folders import cache_folder

KERNELS_VARIABLE = "MLX_PTX_CACHE_DIR"
_EMULATING = ("applegpu_g13", "applegpu_g14")
"""The architectures of M1 and M2."""

logger = logging.getLogger(__name__)


def computes_on_gpu() -> bool:
    return mx.is_available(mx.gpu)


def this_device() -> Device:
    info = mx.device_info()
    name, generation = str(info.get("device_name", "")), str(info.get("architecture", ""))
    if "max_recommended_working_set_size" in info:
        return Device("metal", int(info["max_recommended_working_set_size"]), name, generation)
    if "total_memory" in info:
        return Device("cuda", int(info["total_memory"]), name, generation)
    return Device("cpu", None, name, generation)


def emulates_bfloat16(device: Device) -> bool:
    """Whether the chip computes in bfloat16 more slowly than in float16."""
    return device.backend == "metal" and device.generation.startswith(_EMULATING)


def keep_kernels(device: Device) -> None:
    """Has MLX keep the kernels that it compiles for CUDA in a folder of the user, unless the user names another one.

    MLX's own choice is a folder below /tmp, which other users may write to and a restart of the machine empties. The
    files carry no version, so the folder has MLX's and the GPU's. Call it before the first operation.
    """
    if device.backend != "cuda" or KERNELS_VARIABLE in os.environ:
        return
    folder = cache_folder("kernels") / f"mlx-{importlib.metadata.version('mlx')}-{device.generation or 'cuda'}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as exc:
        logger.warning("Compiled kernels are not kept: %s cannot be created: %s", folder, exc.strerror)
        return
    os.environ[KERNELS_VARIABLE] = str(folder)
