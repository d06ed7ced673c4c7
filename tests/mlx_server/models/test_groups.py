"""Which ranks can share a model: decided from files, before anything is loaded."""

import json
from pathlib import Path

import pytest

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.config import MLXServerSettings, UnreadableSettings, faults_of
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models.catalog import ModelEntry
from mlx_manager.mlx_server.models.groups import UnusableGroup, memory_here, plan_group
from mlx_manager.mlx_server.models.weights import weights_size
from tests.small_models import make_lora, make_random_model

SMOLLM2 = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536}
QWEN2 = {"model_type": "qwen2", "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24}
GEMMA = {"model_type": "gemma", "num_attention_heads": 8, "num_key_value_heads": 4}


def folder_with(tmp_path: Path, config: dict[str, object]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def entry_of(folder: Path, **settings: object) -> ModelEntry:
    return ModelEntry(
        "big", folder, settings=ModelSettings.model_validate({"id": "big", "kind": "generate", **settings})
    )


def parallel_of(folder: Path, **settings: object) -> str:
    membership = plan_group(entry_of(folder, **settings), folder)
    assert membership is not None
    return membership.parallel


@pytest.mark.parametrize(
    ("config", "ranks", "parallel"),
    [
        (SMOLLM2, 3, "tensor"),
        (QWEN2, 2, "tensor"),
        (QWEN2, 4, "pipeline"),
        ({"model_type": "glm_moe_dsa"}, 2, "tensor"),
    ],
)
def test_architecture_and_head_counts_decide_how_ranks_share_a_model(
    tmp_path: Path, config: dict[str, object], ranks: int, parallel: str
) -> None:
    assert parallel_of(folder_with(tmp_path, config), ranks=ranks) == parallel


@pytest.mark.parametrize(
    ("config", "settings", "reason"),
    [
        (
            SMOLLM2,
            {"ranks": 2},
            "its 9 attention heads and 3 key-value heads cannot be divided among 2 ranks. Use 3 ranks.",
        ),
        (SMOLLM2, {"ranks": 2}, "mlx-lm has no pipeline for the architecture 'llama'."),
        (SMOLLM2, {"ranks": 3, "parallel": "pipeline"}, "mlx-lm has no pipeline for the architecture 'llama'."),
        (GEMMA, {"ranks": 2}, "mlx-lm cannot shard the architecture 'gemma'."),
        (QWEN2, {"ranks": 4, "parallel": "tensor"}, "cannot be divided among 4 ranks. Use 2 ranks."),
        (QWEN2, {"ranks": 25}, "its 24 layers are fewer than 25 ranks. Use 24 ranks or fewer."),
        (QWEN2, {"ranks": 2, "kind": "embed"}, "only generative models run over several ranks."),
        (QWEN2, {"ranks": 2, "backend": "jaccl"}, "jaccl needs the RDMA devices of each host"),
    ],
)
def test_model_that_ranks_cannot_share_is_refused_with_the_remedy(
    tmp_path: Path, config: dict[str, object], settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(UnusableGroup) as caught:
        parallel_of(folder_with(tmp_path, config), **settings)
    assert reason in str(caught.value)


def test_adapter_over_ranks_is_refused(tmp_path: Path) -> None:
    base = make_random_model(tmp_path / "base")
    adapter = make_lora(tmp_path / "adapter", base)
    with pytest.raises(UnusableGroup, match="cannot have an adapter"):
        parallel_of(base, ranks=2, adapter=adapter)


@pytest.mark.parametrize(
    ("hosts", "reason"),
    [
        ("no JSON", "is not a hosts file of MLX"),
        ([{"ips": ["10.0.0.1"]}], "has 1 hosts. Give 2 to 64"),
        ([{"ips": ["10.0.0.1"]}, {"ssh": "mac2"}], "is not a hosts file of MLX: Object missing required field `ips`"),
        ([{"ips": ["10.0.0.1"]}, {"ips": []}], "host 1 has no ips"),
        ([{"ips": ["10.0.0.1"]}, {"ips": ["mac2.local"]}], "host 1 has the address 'mac2.local'. Give IPv4 addresses"),
        ([{"ips": ["0.0.0.0"]}, {"ips": ["10.0.0.2"]}], "host 0 has the address 0.0.0.0, which every network reaches"),
        (
            [{"ips": ["10.0.0.1"]}, {"ips": ["10.0.0.2"], "ssh": "-oProxyCommand=x"}],
            "has the ssh name '-oProxyCommand=x'",
        ),
        ({"hosts": [{"ips": ["10.0.0.1"]}] * 2, "envs": ["A B"]}, "has the entry 'A B' in envs. Write NAME=VALUE."),
    ],
)
def test_hosts_file_that_cannot_be_meant_is_refused(tmp_path: Path, hosts: object, reason: str) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(hosts if isinstance(hosts, str) else json.dumps(hosts))
    with pytest.raises(UnusableGroup) as caught:
        parallel_of(folder_with(tmp_path, QWEN2), hosts=file)
    assert reason in str(caught.value)


def test_hosts_file_of_mlx_gives_addresses_backend_and_environment(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    machines = [{"ssh": f"mac{n}", "ips": [f"10.0.0.{n}"], "rdma": [None, "en5"]} for n in (1, 2)]
    file.write_text(json.dumps({"backend": "jaccl", "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": machines}))
    membership = plan_group(entry_of(tmp_path, hosts=file), folder_with(tmp_path, QWEN2))
    assert membership is not None
    assert (membership.backend, membership.environment) == ("jaccl", {"MLX_METAL_FAST_SYNCH": "1"})
    assert [host.addresses for host in membership.hosts] == [["10.0.0.1:32323"], ["10.0.0.2:32324"]]
    assert [host.ssh for host in membership.hosts] == [None, "mac2"]


def test_memory_on_this_machine_counts_only_its_ranks(tmp_path: Path) -> None:
    file, folder = tmp_path / "hosts.json", demo_model_path()
    file.write_text(json.dumps([{"ips": ["10.0.0.1"]}, {"ips": ["10.0.0.2"], "ssh": "mac2"}]))
    whole = weights_size(folder).memory_bytes
    here = memory_here(folder, plan_group(entry_of(folder, ranks=2), folder))
    part = memory_here(folder, plan_group(entry_of(folder, hosts=file), folder))
    assert whole / 2 < part < whole < here == 2 * part


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"ranks": 2, "rank_hosts": __file__}, "ranks and rank_hosts are mutually exclusive"),
        ({"rank_hosts": "/nowhere/hosts.json"}, "there is no file /nowhere/hosts.json"),
        ({"rank_backend": "nccl"}, "rank_backend and rank_parallel have no effect on one process"),
        ({"models": [{"id": "a", "parallel": "tensor"}]}, "backend and parallel have no effect on one process"),
        ({"models": [{"id": "a", "ranks": 2, "hosts": __file__}]}, "ranks and hosts are mutually exclusive"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(UnreadableSettings) as caught:
        MLXServerSettings(**settings)
    assert fault in "\n".join(faults_of(caught.value))
