"""Makes docs/terminal.svg: runs the commands of the README against a real server and draws what they print.

python scripts/terminal_picture.py docs/terminal.svg
"""

import argparse
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS = 118
START_SECONDS = 60
SERVE = "mlx-manager serve"
COMMANDS = (
    "curl -s http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
    '    -d \'{{"model": "demo", "messages": [{{"role": "user", "content": "Count to 5"}}]}}\'',
    "echo 'What is the capital of France?' | mlx-manager chat demo",
    "mlx-manager models",
    "mlx-manager ps",
)
FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)
"""Rich's picture asks a CDN for its fonts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["MLX_SERVER_PORT"] = str(options.port)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
    for command, output in [*_session(options.port, environment)]:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text(output.strip()))
    picture = console.export_svg(title="mlx-manager", code_format=FONT_FACE.sub("", CONSOLE_SVG_FORMAT))
    options.picture.write_text(picture, "utf-8")


def _session(port: int, environment: dict[str, str]) -> list[tuple[str, str]]:
    """Each command with what it printed; the server's line first."""
    server = subprocess.Popen(SERVE.split(), env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}/ready")
        printed = []
        for command in COMMANDS:
            line = command.format(port=port)
            result = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=True)
            printed.append((line, result.stdout))
    finally:
        server.terminate()
        log = server.stderr.read()
        server.wait()
    lines = [line for line in log.splitlines() if "Listening on" in line or "Model loaded" in line]
    return [(f"{SERVE} &", "\n".join(lines)), *printed]


def _wait_until_ready(url: str) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=1)
        except (urllib.error.URLError, OSError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
        else:
            return


if __name__ == "__main__":
    main()
