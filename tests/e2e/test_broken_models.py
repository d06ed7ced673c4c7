"""Model files that are damaged: one clear error for each request, and a `/ready` that says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.running_server import running_server


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def lose_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


DAMAGES = [cut_weights, lose_weights, garble_config, lose_tokenizer]


def test_each_damage_is_one_clear_error_and_harms_no_other_model(tmp_path: Path, babbler: Path) -> None:
    folders = [damaged(babbler, tmp_path, damage) for damage in DAMAGES]
    with running_server(tmp_path, available_models=",".join(map(str, folders))) as server:
        before = server.holdings()
        for folder in folders:
            answer = server.post("/v1/completions", {"model": folder.name, "prompt": "x"})
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "model_load_failed"), error
            assert folder.name in error["message"]
            assert server.readiness() == {"status": "ready", "model": "demo"}
        assert server.chat("Count to 3")["choices"][0]["message"]["content"] == "1, 2, 3"
        server.wait_until_nothing_is_left_of_it(before)


def test_damaged_default_model_is_not_ready_and_is_loaded_once_it_is_mended(tmp_path: Path, babbler: Path) -> None:
    folder = damaged(babbler, tmp_path, cut_weights)
    request = {"model": folder.name, "prompt": "x", "max_tokens": 3}
    with running_server(tmp_path, default_model=folder, wait=False) as server:
        server.wait_for_log("cannot be loaded")
        failed = server.wait_for_status("failed")
        assert "cannot be loaded" in failed["error"]
        assert server.post("/v1/completions", request).json()["error"]["message"] == failed["error"]
        shutil.copytree(babbler, folder, dirs_exist_ok=True)
        assert server.post("/v1/completions", request).status_code == 200
        assert server.readiness()["status"] == "ready"


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def share_no_weights(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)


def add_layers(folder: Path) -> None:
    change_config(folder, num_hidden_layers=4)


def widen(folder: Path) -> None:
    change_config(folder, intermediate_size=256)


def scale_positions(folder: Path) -> None:
    change_config(folder, model_type="mixtral", rope_scaling={"rope_type": "yarn", "factor": 4.0})


def scale_positions_strangely(folder: Path) -> None:
    change_config(folder, rope_scaling={"rope_type": "spiral", "factor": 4.0})


def lose_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def lose_a_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "rms_norm_eps"}))


FAILED_LOADS = {
    share_no_weights: "tie_word_embeddings",
    add_layers: "lack 18 weights of its architecture: model.layers.2",
    widen: "does not have the shape",
    scale_positions: "the rope type 'yarn', which mlx-lm's 'mixtral' ignores",
    scale_positions_strangely: "Unsupported RoPE type spiral",
    lose_vocabulary: "its tokenizer cannot be read",
    lose_a_field: "its config.json has no 'rms_norm_eps'",
}


def test_a_load_that_fails_says_what_is_wrong_and_what_to_do(tmp_path: Path, babbler: Path) -> None:
    folders = {damaged(babbler, tmp_path, damage): said for damage, said in FAILED_LOADS.items()}
    with running_server(tmp_path, models_dir=tmp_path) as server:
        for folder, said in folders.items():
            answer = server.post("/v1/completions", {"model": folder.name, "prompt": "x"})
            message = answer.json()["error"]["message"]
            assert answer.status_code == 503, message
            assert message.startswith(f"Model '{folder.name}' cannot be loaded: ")
            assert said in message
            assert message.count(". ") >= 1, "it names no remedy"


def damaged(model: Path, parent: Path, damage: Callable[[Path], None]) -> Path:
    folder = parent / damage.__name__
    shutil.copytree(model, folder)
    damage(folder)
    return folder
