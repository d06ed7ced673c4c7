"""The commands and programs of the docs, run as they are printed, and the links between the pages.

tests/test_readme.py runs the README's examples, tests/providers/test_page.py those of docs/providers.md, and
tests/deploy/ those of the service files.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_manager.mlx_server.config import MLXServerSettings
from tests.mlx_server.engine.embedding.tiny import EMBEDDERS, RERANKERS, make_model
from tests.running_server import HANG_SECONDS, RunningServer, running_server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
ADDRESS = "http://127.0.0.1:8000"
MANAGER = Path(sys.executable).parent / "mlx-manager"

ELSEWHERE = {
    "make": "its targets are those of the Makefile: see below",
    "docker": "tests/deploy",
    "pip": "tests/test_packaging.py, tests/installation",
    "uv": "tests/installation",
    "pipx": "tests/installation",
    "pre-commit": "a tool of its own",
    "mlx_lm.server": "tests/providers",
    "claude": "make test-agents",
    "export": "sets a variable for the lines that follow",
}
"""Commands that other tests run."""
LEFT_OPEN = (
    "launch claude",
    "launch codex",
    "serve",
    "service ",
    "manager rank",
    "MLX_SERVER_",
    "LOGFIRE_TOKEN=",
    "OTEL_EXPORTER_",
)
"""Commands that contain these start a server or a client with settings of the reader's own."""


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> Iterator[str]:
    """Of the shell blocks, each with the lines that continue it."""
    for block in blocks(page, "sh", "bash"):
        command = ""
        for line in block.replace("\\\n", " ").splitlines():
            command += f"{line}\n"
            try:
                words = shlex.split(command, comments=True)
            except ValueError:  # a quotation goes on in the next line
                continue
            if words:
                yield command.strip()
            command = ""


def first_word(command: str) -> str:
    return shlex.split(command, comments=True)[0]


def is_run_here(command: str) -> bool:
    return first_word(command) not in ELSEWHERE and not any(mark in command for mark in LEFT_OPEN)


SHELL = sorted(
    {(str(page.relative_to(ROOT)), line) for page in PAGES[4:] for line in commands(page) if is_run_here(line)}
)
PYTHON = [
    (str(page.relative_to(ROOT)), program)
    for page in PAGES[4:]
    if page.name != "providers.md"
    for program in blocks(page, "python")
    if "langchain" not in program  # make test-clients
]


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The demo, and small models under the names of docs/embeddings.md."""
    folder = tmp_path_factory.mktemp("documented")
    make_model(folder / "models" / "all-MiniLM-L6-v2", EMBEDDERS["bert"])
    make_model(folder / "models" / "bge-reranker-v2-m3", RERANKERS["bert"])
    (folder / ".codex").mkdir()
    with running_server(folder, models_dir=folder / "models") as server:
        yield server


def environment(server: RunningServer) -> dict[str, str]:
    home = server.log.parent
    path = f"{MANAGER.parent}:/usr/local/bin:/usr/bin:/bin"
    return {"HOME": str(home), "PATH": path, "MLX_SERVER_PORT": str(server.port), "PYTHONPATH": str(ROOT / "backend")}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("page", "command"), SHELL)
def test_a_command_of_the_docs_works(page: str, command: str, documented: RunningServer) -> None:
    line = command.replace(ADDRESS, documented.url).replace("curl ", "curl --fail-with-body --silent --show-error ")
    ran = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=HANG_SECONDS, env=environment(documented)
    )
    assert ran.returncode == 0, f"{page}: {ran.stdout} {ran.stderr}"


@pytest.mark.parametrize(("page", "program"), PYTHON)
def test_a_program_of_the_docs_prints_an_answer(page: str, program: str, documented: RunningServer) -> None:
    source = program.replace(ADDRESS, documented.url)
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert ran.returncode == 0, f"{page}: {ran.stderr}"
    assert "1, 2, 3, 4, 5" in ran.stdout


def test_the_program_with_a_clock_shows_why_its_prompt_missed(documented: RunningServer) -> None:
    source, *_ = blocks(ROOT / "docs" / "prefix-cache.md", "python")
    source = source.replace("12:0", "17:3")  # the server has answered the program before
    ran = [sys.executable, "-c", source.replace(ADDRESS, documented.url)]
    _, second = subprocess.run(ran, capture_output=True, text=True, timeout=HANG_SECONDS).stdout.splitlines()
    printed = (ROOT / "docs" / "prefix-cache.md").read_text("utf-8")
    assert second in printed
    assert "cache_miss" in second


def test_the_docs_have_commands_and_programs() -> None:
    assert len(SHELL) > 8
    assert len(PYTHON) > 1


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_of_the_docs_are_in_the_makefile(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [first for line in commands(ROOT / name) if (first := re.match(r"make ([a-z-]+)", line))]
    assert {match[1] for match in named} - targets == set()


@pytest.mark.parametrize("name", ["docs/models.md", "docs/anthropic.md", "docs/providers.md"])
def test_settings_files_of_the_docs_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = blocks(ROOT / name, "toml")
    assert files
    for text in files:
        (tmp_path / "mlx-manager.toml").write_text(text)
        monkeypatch.setenv("MLX_SERVER_CONFIG", str(tmp_path / "mlx-manager.toml"))
        MLXServerSettings()


@pytest.mark.parametrize("name", NAMES)
def test_links_of_the_docs_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path)
        assert file.exists(), f"{name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{name}: {target}"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
