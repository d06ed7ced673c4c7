"""Writes deploy/homebrew/mlx-manager.rb for a release: `python scripts/homebrew_formula.py DIST/WHEEL`. Needs uv.

The formula installs wheels, because a build of MLX, tokenizers and others from source takes an hour and needs Rust.
uv resolves them for Apple silicon, with the versions of constraints.txt.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
FORMULA = ROOT / "deploy" / "homebrew" / "mlx-manager.rb"
HOMEPAGE = "https://github.com/mlx-manager/mlx-manager"
PYTHON = (3, 13)
SYSTEMS = {"sonoma :or_older": (14, 0), "sequoia": (15, 0), "tahoe :or_newer": (26, 0)}
"""Homebrew's names of the versions of macOS for which MLX has wheels of their own."""


@dataclass(frozen=True, slots=True)
class Wheel:
    url: str
    sha256: str


def main() -> None:
    wheel = Path(sys.argv[1])
    _, version, _, _ = parse_wheel_filename(wheel.name)
    url = f"{HOMEPAGE}/releases/download/v{version}/{wheel.name}"
    own = Wheel(url, hashlib.sha256(wheel.read_bytes()).hexdigest())
    resolved = {name: resolve(system) for name, system in SYSTEMS.items()}
    FORMULA.write_text(formula(own, resolved), "utf-8")


def resolve(system: tuple[int, int]) -> dict[str, Wheel]:
    """The wheels for that version of macOS, by package."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        command = [
            "uv",
            "pip",
            "compile",
            "--quiet",
            "pyproject.toml",
            "--constraints",
            "constraints.txt",
            "--no-build",
        ]
        target = ["--python-platform", "aarch64-apple-darwin", "--python-version", ".".join(map(str, PYTHON))]
        environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, system))}
        output = ["--format", "pylock.toml", "--output-file", str(lock)]
        subprocess.run([*command, *target, *output], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        packages = tomllib.loads(lock.read_text("utf-8"))["packages"]
    tags = _tags(system)
    return {package["name"]: _best(package["wheels"], tags) for package in packages}


def _tags(system: tuple[int, int]) -> list[Tag]:
    """What an interpreter of Homebrew accepts there, best first."""
    platforms = list(mac_platforms(system, "arm64"))
    return [*cpython_tags(PYTHON, platforms=platforms), *compatible_tags(PYTHON, platforms=platforms)]


def _best(wheels: Iterable[dict[str, object]], tags: list[Tag]) -> Wheel:
    def rank(wheel: dict[str, object]) -> int:
        _, _, _, supported = parse_wheel_filename(str(wheel["url"]).rpartition("/")[2])
        return min((tags.index(tag) for tag in supported if tag in tags), default=len(tags))

    best = min(wheels, key=rank)
    assert rank(best) < len(tags), best
    hashes = best["hashes"]
    assert isinstance(hashes, dict)
    return Wheel(str(best["url"]), hashes["sha256"])


def formula(own: Wheel, resolved: dict[str, dict[str, Wheel]]) -> str:
    names = sorted(next(iter(resolved.values())))
    resources = "\n".join(
        _resource(name, {system: wheels[name] for system, wheels in resolved.items()}) for name in names
    )
    python = ".".join(map(str, PYTHON))
    description = re.search(r'^description = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert description is not None
    return f"""\
# scripts/homebrew_formula.py writes this file.
class MlxManager < Formula
  desc "{description[1]}"
  homepage "{HOMEPAGE}"
  url "{own.url}", using: :nounzip
  sha256 "{own.sha256}"
  license "MIT"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "python@{python}"

  # The wheels' libraries find each other by @rpath.
  preserve_rpath

{resources}
  def install
    wheels = buildpath/"wheels"
    wheels.install Dir["*.whl"]
    resources.each {{ |resource| resource.stage(wheels) }}
    system "python{python}", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "--no-deps", "--no-index", *wheels.glob("*.whl")
    bin.install_symlink libexec/"bin/mlx-manager"
  end

  def caveats
    <<~TEXT
      To run the server as a service: mlx-manager service install
    TEXT
  end

  test do
    assert_match version.to_s, shell_output("#{{bin}}/mlx-manager --version")
  end
end
"""


def _resource(name: str, wheels: dict[str, Wheel]) -> str:
    """One wheel for all systems, or one for each."""
    if len(set(wheels.values())) == 1:
        lines = _source(next(iter(wheels.values())), "    ")
    else:
        lines = []
        for system, wheel in wheels.items():
            lines += [f"    on_{system} do", *_source(wheel, "      "), "    end"]
    return "\n".join([f'  resource "{name}" do', *lines, "  end", ""])


def _source(wheel: Wheel, indent: str) -> list[str]:
    return [f'{indent}url "{wheel.url}", using: :nounzip', f'{indent}sha256 "{wheel.sha256}"']


if __name__ == "__main__":
    main()
