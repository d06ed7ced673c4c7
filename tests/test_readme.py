"""The README's examples, run as they are printed against the running server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node import install_openai_node
from tests.running_server import HANG_SECONDS, RunningServer

README = Path(__file__).parent.parent / "README.md"


def example(language: str, containing: str, server: RunningServer) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [block for block in blocks if containing in block]
    return str(block).replace("http://127.0.0.1:8000", server.url)


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True, cwd=cwd).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_example_counts_to_five(server: RunningServer) -> None:
    assert '"content":"1, 2, 3, 4, 5"' in run("sh", "-c", example("sh", "curl", server))


def test_python_example_counts_to_five(server: RunningServer) -> None:
    assert run(sys.executable, "-c", example("python", "OpenAI", server)) == "1, 2, 3, 4, 5"


def test_node_example_counts_to_five(server: RunningServer) -> None:
    folder = install_openai_node()
    assert run("node", "--input-type=module", "-e", example("js", "OpenAI", server), cwd=folder) == "1, 2, 3, 4, 5"
