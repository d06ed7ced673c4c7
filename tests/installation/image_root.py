"""Runs a Dockerfile's steps where no Docker daemon is: in copies of a root that debootstrap has made. Needs root.

The root stands in for the Dockerfile's base image: the same Debian, with Debian's own Python as `python`.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUITE, MIRROR = "trixie", "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,python3,python3-venv"
STEP_SECONDS = 1800
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def make_base(folder: Path) -> None:
    """Debian with Python, as `python:*-slim` is. Keeps a root that is there."""
    if (folder / "usr/local/bin/python").is_symlink():
        return
    shutil.rmtree(folder, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, folder, MIRROR)
    (folder / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    certificates = os.environ.get("PIP_CERT")  # of this machine's way to PyPI
    if certificates is not None:
        shutil.copy(certificates, folder / "etc/ssl/certs/ca-certificates.crt")


@dataclass
class Stage:
    """A stage of the Dockerfile, and the state that its instructions leave behind."""

    root: Path
    name: str = ""
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"})
    user: str = "root"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)

    def command(self, words: Sequence[str], environment: Mapping[str, str] = {}) -> list[str]:
        """`words` in this stage's root, as its user, in its working directory."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        inner = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        chroot = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root)]
        return ["env", "-i", *variables, *chroot, "/bin/sh", "-c", inner]


class Image:
    """Builds `dockerfile` with files of `context` below `folder`; `last` is the stage that would be the image."""

    def __init__(self, dockerfile: Path, context: Path, folder: Path, base: Path, arguments: Mapping[str, str]) -> None:
        self._context, self._folder, self._base, self._arguments = context, folder, base, dict(arguments)
        self._stages: list[Stage] = []
        for instruction, words in instructions(dockerfile):
            getattr(self, f"_{instruction.lower()}")(words)

    @property
    def last(self) -> Stage:
        return self._stages[-1]

    def _from(self, words: str) -> None:
        _, _, name = words.partition(" AS ")
        root = self._folder / f"stage-{len(self._stages)}"
        _run("cp", "-a", "--reflink=auto", self._base, root)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        self._stages.append(Stage(root, name))

    def _arg(self, words: str) -> None:
        name, _, default = words.partition("=")
        self.last.environment[name] = self._arguments.get(name, default)

    def _env(self, words: str) -> None:
        known = self.last.environment
        for word in shlex.split(words):
            name, _, value = word.partition("=")
            known[name] = re.sub(r"\$(\w+)", lambda found: known[found[1]], value)

    def _workdir(self, words: str) -> None:
        self.last.folder = words
        self._inside(words).mkdir(parents=True, exist_ok=True)

    def _copy(self, words: str) -> None:
        *sources, target = [word for word in words.split() if not word.startswith("--from=")]
        stages = {stage.name: stage.root for stage in self._stages}
        named = re.match(r"--from=(\w+)", words)
        origin = stages[named[1]] if named else self._context
        place = self._inside(target)
        for source in (origin / source.lstrip("/") for source in sources):
            place.parent.mkdir(parents=True, exist_ok=True)
            _run("cp", "-a", *([source, place] if source.is_file() else ["-T", source, place]))

    def _run(self, words: str) -> None:
        proxies = {name: os.environ[name] for name in _PROXIES if name in os.environ}
        _run(*self.last.command(["/bin/sh", "-c", words], proxies))

    def _user(self, words: str) -> None:
        self.last.user = words

    def _entrypoint(self, words: str) -> None:
        self.last.entrypoint = json.loads(words)

    def _healthcheck(self, words: str) -> None:
        self.last.health_check = json.loads(words.partition("CMD ")[2])

    def _no_step(self, words: str) -> None:
        """Says something about the image, and does nothing while it is built."""

    _volume = _expose = _stopsignal = _no_step

    def _inside(self, place: str) -> Path:
        return self.last.root / os.path.join(self.last.folder, place).lstrip("/")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions in order, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(line[0], line[1].strip()) for line in lines]


def _run(*words: str | Path) -> None:
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=STEP_SECONDS)
    assert ran.returncode == 0, f"{words}\n{ran.stdout[-4000:]}{ran.stderr[-4000:]}"
