"""Each worker's share of the machine."""

from mlx_manager.mlx_server.models.budget import MIN_BUFFER_BYTES, Budget, Holding

GB = 2**30


def shares_of(limit_gb: int, models: int) -> list[int]:
    holdings = [Holding(f"model{i}", GB // 4, 0.0, evictable=True) for i in range(models)]
    return [share.buffer_bytes for share in Budget(limit_gb * GB, 8, 0).shares(holdings).values()]


def test_freed_memory_that_workers_keep_follows_the_budget() -> None:
    assert shares_of(64, models=1) == [4 * GB]
    assert shares_of(64, models=2) == [2 * GB, 2 * GB]
    assert shares_of(4, models=1) == [MIN_BUFFER_BYTES]
