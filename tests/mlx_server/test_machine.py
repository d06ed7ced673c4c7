"""The memory limit of a container, from files as the kernel writes them and from a control group of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_manager.mlx_server.machine import container_limit_bytes
from tests.running_server import environment_of_server

MB = 2**20
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
V1_IN_DOCKER = "35 31 0:32 /docker/4f7 /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory"


def tree(root: Path, groups: str, mounts: str, **limits: object) -> Path:
    """A root with the files that the kernel has; a limit's name is its path with __ for /."""
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    for name, limit in limits.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/")
        version_2 = "cgroup2" in mounts and not name.startswith("memory")
        file.mkdir(parents=True, exist_ok=True)
        (file / ("memory.max" if version_2 else "memory.limit_in_bytes")).write_text(f"{limit}\n")
    return root


def test_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2)
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{512 * MB}\n")
    assert container_limit_bytes(root) == 512 * MB


def test_smallest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    limits = {"system.slice": 300 * MB, "system.slice__mlx.service": "max"}
    assert container_limit_bytes(tree(tmp_path / "outer", "0::/system.slice/mlx.service", V2, **limits)) == 300 * MB
    limits = {"system.slice": 300 * MB, "system.slice__mlx.service": 200 * MB}
    assert container_limit_bytes(tree(tmp_path / "inner", "0::/system.slice/mlx.service", V2, **limits)) == 200 * MB


def test_limit_of_version_1_beside_version_2(tmp_path: Path) -> None:
    groups = "4:memory:/jobs/one\n1:cpu,cpuacct:/\n0::/"
    limits = {"memory": 2**63 - 4096, "memory__jobs": 100 * MB, "memory__jobs__one": 2**63 - 4096}
    unified = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
    assert container_limit_bytes(tree(tmp_path, groups, f"{V1}\n{unified}", **limits)) == 100 * MB


def test_container_of_version_1_knows_its_group_by_the_name_outside(tmp_path: Path) -> None:
    root = tree(tmp_path, "4:memory:/docker/4f7", V1_IN_DOCKER, memory=64 * MB)
    assert container_limit_bytes(root) == 64 * MB


def test_group_that_is_not_mounted_has_the_limit_of_what_is(tmp_path: Path) -> None:
    root = tree(tmp_path, "4:memory:/elsewhere", V1_IN_DOCKER, memory=64 * MB)
    assert container_limit_bytes(root) == 64 * MB


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096, 2**60, "", "nonsense"])
def test_there_is_no_limit_above_what_the_machine_has(tmp_path: Path, limit: object) -> None:
    assert container_limit_bytes(tree(tmp_path, "0::/one", V2, one=limit)) is None


def test_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert container_limit_bytes(tmp_path) is None


@pytest.fixture
def group_of_one_gb() -> Iterator[Path]:
    """A control group of this machine: only root may make one."""
    parent = next(
        (
            Path(line.split()[4])
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if " - cgroup cgroup " in line and line.endswith("memory")
        ),
        Path("/sys/fs/cgroup"),
    )
    group = parent / f"mlx-manager-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if parent.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(2**30))
    except OSError as exc:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group of one's own: {exc}")
    yield group
    group.rmdir()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has control groups")
def test_default_budget_is_a_share_of_the_containers_memory(group_of_one_gb: Path) -> None:
    program = "from mlx_manager.mlx_server.config import MLXServerSettings as S; print(S().max_memory_gb)"
    command = [
        "sh",
        "-c",
        'echo $$ > "$0/cgroup.procs" && exec "$@"',
        str(group_of_one_gb),
        sys.executable,
        "-c",
        program,
    ]
    ran = subprocess.run(command, env=environment_of_server({}), capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == ["0.75"], ran.stderr
