"""The server sends nothing anywhere unless LogFire, an upstream or a download is configured."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import BACKEND, HANG_SECONDS

SESSION = Path(__file__).with_name("offline_session.py")
NAMESPACE = ("unshare", "--map-root-user", "--net", "--mount")


def may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not may_unshare(), reason="no network namespace can be made here")
def test_start_requests_and_stop_try_to_reach_no_other_machine(tmp_path: Path) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")  # so that lookups are counted too
    session = [sys.executable, str(SESSION), str(tmp_path)]
    inside = ["sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver), *session]
    root = str(BACKEND.parent)
    proxies = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    environment = {**os.environ, **proxies, "PYTHONPATH": os.pathsep.join([str(BACKEND), root])}
    ran = subprocess.run(
        [*NAMESPACE, *inside], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )
    assert ran.returncode == 0, ran.stderr
    counted = json.loads(ran.stdout.splitlines()[-1])
    assert counted["use"] == 0
    assert counted["connect"] > counted["lookup"] > 0, "the counter that proves it does not count"
