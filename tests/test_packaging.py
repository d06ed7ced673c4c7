"""The wheel: it holds the demo model, and serves from an environment that has never seen this checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from tests.running_server import running_server

ROOT = Path(__file__).parent.parent


def run(*command: str | Path) -> None:
    ran = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_wheel_serves_the_demo_model_from_a_fresh_environment(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("mlx_manager-*.whl")
    packed = zipfile.ZipFile(wheel).namelist()
    assert "mlx_manager/demo/model.safetensors" in packed
    assert not [name for name in packed if name.startswith(("tests", "scripts", "backend"))]

    fresh = tmp_path / "fresh"
    run(sys.executable, "-m", "venv", "--without-pip", fresh)
    (site_packages,) = fresh.glob("lib/python*/site-packages")
    # What it depends on is the developer's; the package itself is found nowhere but in the wheel.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(*pip, "--python", fresh / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    with running_server(tmp_path, command=(str(fresh / "bin" / "mlx-manager"), "serve")) as server:
        (worker,) = server.workers()
        assert worker.environ()["PYTHONPATH"].startswith(str(site_packages))
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
