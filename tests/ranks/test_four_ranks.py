"""A random Llama over four ranks. With fewer cores than ranks each operation is slow, so the answers are short."""

from pathlib import Path

from tests.running_server import running_server
from tests.small_models import make_random_model

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}


def test_four_ranks_answer_like_one_and_like_two(tmp_path: Path) -> None:
    llama = make_random_model(tmp_path / "llama", more=HEADS)
    config = tmp_path / "mlx-manager.toml"
    entries = {"one": "", "two": "ranks = 2", "four": "ranks = 4"}
    config.write_text("".join(f'[[models]]\nid = "{id}"\npath = "{llama}"\n{more}\n' for id, more in entries.items()))
    answers = {}
    with running_server(tmp_path, config=config, default_model="one", max_models=1) as server:
        for model in entries:
            greedy = server.chat("Hello", model=model, max_tokens=5)
            seeded = server.chat("Hello", model=model, max_tokens=5, temperature=1, seed=3)
            answers[model] = [one["choices"][0]["message"]["content"] for one in (greedy, seeded)]
    assert answers["two"] == answers["one"]
    assert answers["four"] == answers["one"]
