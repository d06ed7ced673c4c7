"""The Homebrew formula: Ruby reads it, and it installs wheels of the versions in constraints.txt."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlx_manager.mlx_server import __version__
from tests.running_server import HANG_SECONDS

ROOT = Path(__file__).parents[2]
FORMULA = ROOT / "deploy" / "homebrew" / "mlx-manager.rb"
RENEW = "run make formula"


@pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby is not installed")
def test_ruby_reads_the_formula() -> None:
    ran = subprocess.run(["ruby", "-wc", FORMULA], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "Syntax OK\n", "")


def test_resources_are_wheels_for_apple_silicon_of_the_versions_in_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0]: line.split("==")[1].split()[0] for line in lines if "==" in line}
    text = FORMULA.read_text()
    blocks = re.findall(r'^  resource "([\w.-]+)" do\n(.*?)^  end$', text, re.DOTALL | re.MULTILINE)
    assert {"mlx", "mlx-metal", "mlx-lm", "fastapi", "tokenizers"} <= {name for name, _ in blocks}
    for name, block in blocks:
        urls = re.findall(r'url "(\S+)", using: :nounzip\n +sha256 "[0-9a-f]{64}"\n', block)
        assert len(urls) == block.count("url ") in (1, 3), name
        for url in urls:
            _, version, *_, platform = url.rpartition("/")[2].removesuffix(".whl").split("-")
            assert version == pinned.get(name, version), f"{name}: {RENEW}"
            assert re.fullmatch(r"any|macosx_\d+_\d+_(arm64|universal2)", platform.split(".")[-1]), url


def test_each_macos_gets_mlx_s_own_wheel_for_it() -> None:
    metal = re.findall(r"mlx_metal-[\d.]+-py3-none-macosx_(\d+)_0_arm64\.whl", FORMULA.read_text())
    assert metal == ["14", "15", "26"]


def test_the_formula_is_that_of_this_version() -> None:
    assert f"/v{__version__}/mlx_manager-{__version__}-py3-none-any.whl" in FORMULA.read_text(), RENEW
