"""What ranks send each other: the same values arrive at all of them."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from mlx_manager.mlx_server.engine.launch import worker_environment
from mlx_manager.mlx_server.engine.membership import RankHost
from mlx_manager.mlx_server.models.rank_hosts import local_hosts
from tests.running_server import HANG_SECONDS

PROGRAM = """
import json, sys
import mlx.core as mx
from mlx_manager.mlx_server.engine.membership import Membership, RankHost
from mlx_manager.mlx_server.engine.ranks import PACKET_BYTES, Ranks

rank, addresses = int(sys.argv[1]), json.loads(sys.argv[2])
ranks = Ranks.join(Membership(rank, "ring", "tensor", [RankHost(one) for one in addresses]))
sizes = (0, 1, PACKET_BYTES - 8, PACKET_BYTES - 7, 100_000)
received = [ranks.broadcast((b"%d" % rank * size)[:size]) for size in sizes]
computed = mx.array([1.0]) + rank
print(json.dumps({
    "broadcast": [set(one) <= set(b"0") and len(one) == size for one, size in zip(received, sizes)],
    "gather": [one.decode() for one in ranks.gather(b"rank %d" % rank)],
    "least": ranks.least([5 + rank, 5 - rank]),
    "most": ranks.most([5 + rank, 5 - rank]),
    "of_first": ranks.of_first(mx.array([7, 8], dtype=mx.uint32) + rank, after=computed).tolist(),
}))
"""


def outcome(hosts: list[RankHost], rank: int) -> object:
    addresses = json.dumps([host.addresses for host in hosts])
    command = [sys.executable, "-c", PROGRAM, str(rank), addresses]
    output = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, env=worker_environment())
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout)


def test_every_rank_gets_what_rank_0_sends_and_the_bounds_of_all() -> None:
    hosts = local_hosts(2)
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda rank: outcome(hosts, rank), range(2)))
    expected = {
        "broadcast": [True] * 5,
        "gather": ["rank 0", "rank 1"],
        "least": [5, 4],
        "most": [6, 5],
        "of_first": [7, 8],
    }
    assert outcomes == [expected, expected]
