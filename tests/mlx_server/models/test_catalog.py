import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.errors import ModelLoadFailed, ModelNotFound
from mlx_manager.mlx_server.model_settings import ModelSettings
from mlx_manager.mlx_server.models import catalog as catalog_module
from mlx_manager.mlx_server.models.catalog import Catalog, ModelEntry, locate
from tests.running_server import HANG_SECONDS

LLAMA = "mlx-community/Llama-3.2-3B-Instruct-4bit"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my-model").mkdir()
    return tmp_path / "my-model"


def ids(catalog: Catalog) -> list[str]:
    return [entry.id for entry in catalog]


def test_the_default_model_the_demo_and_the_available_ones_are_loadable() -> None:
    catalog = Catalog("org/default", [LLAMA])
    assert ids(catalog) == ["org/default", "demo", LLAMA]
    assert catalog.default_id == "org/default"


def test_the_demo_is_always_loadable_from_the_package() -> None:
    assert Catalog("org/default", []).resolve("demo") == ModelEntry("demo", demo_model_path().resolve())


def test_a_hub_model_is_listed_under_its_id_and_has_no_folder_yet() -> None:
    assert Catalog("demo", [LLAMA]).resolve(LLAMA) == ModelEntry(LLAMA, None)


def test_a_model_that_is_listed_twice_is_there_once() -> None:
    assert ids(Catalog("demo", ["demo", LLAMA, LLAMA])) == ["demo", LLAMA]


def test_a_folder_is_named_after_itself(folder: Path) -> None:
    catalog = Catalog(str(folder), [])
    assert catalog.default_id == "my-model"
    assert catalog.resolve("my-model") == ModelEntry("my-model", folder.resolve())


@pytest.mark.parametrize("typed", ["{}", "{}/", "{}/.", "{}/../my-model"])
def test_the_path_as_typed_is_an_alias(folder: Path, typed: str) -> None:
    catalog = Catalog(typed.format(folder), [])
    assert catalog.resolve(typed.format(folder)).id == "my-model"
    assert ids(catalog) == ["my-model", "demo"]


@pytest.mark.parametrize("typed", ["my-model", "./my-model", "my-model/"])
def test_a_relative_path_is_an_alias_too(folder: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(folder.parent)
    entry = Catalog(typed, []).resolve(typed)
    assert entry == ModelEntry("my-model", folder.resolve())


def test_a_path_in_the_home_folder_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Catalog("~/my-model", []).resolve("~/my-model") == ModelEntry("my-model", folder.resolve())


def test_one_folder_may_be_typed_in_several_ways(folder: Path) -> None:
    catalog = Catalog(str(folder), [f"{folder}/"])
    assert ids(catalog) == ["my-model", "demo"]
    assert catalog.resolve(f"{folder}/") == catalog.resolve(str(folder))


def test_of_two_folders_with_one_name_the_first_stays(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "elsewhere" / "my-model"
    other.mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        catalog = Catalog(str(folder), [str(other)])
    assert catalog.resolve("my-model").folder == folder.resolve()
    assert str(other.resolve()) in caplog.text
    with pytest.raises(ModelNotFound):
        catalog.resolve(str(other))


def test_a_folder_called_demo_as_the_default_model_is_the_one_served(tmp_path: Path) -> None:
    mine = tmp_path / "demo"
    mine.mkdir()
    catalog = Catalog(str(mine), [])
    assert catalog.resolve(catalog.default_id).folder == mine.resolve()
    assert ids(catalog) == ["demo"]


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_makes_no_folder_loadable(name: str) -> None:
    assert all(entry.folder != Path.cwd() for entry in Catalog("demo", [name]))


@pytest.mark.parametrize(
    ("model_id", "near"), [("Demo", "demo"), ("demo2", "demo"), (LLAMA.lower(), LLAMA), (LLAMA[:-1], LLAMA)]
)
def test_an_unknown_id_is_not_found_and_near_ones_are_named(model_id: str, near: str) -> None:
    with pytest.raises(ModelNotFound) as unknown:
        Catalog("demo", [LLAMA, "org/quite-another"]).resolve(model_id)
    assert repr(model_id) in unknown.value.message
    assert near in unknown.value.message
    assert "org/quite-another" not in unknown.value.message
    assert unknown.value.param == "model"


def test_an_id_near_to_none_is_answered_with_all_there_are() -> None:
    with pytest.raises(ModelNotFound) as unknown:
        Catalog("demo", [LLAMA]).resolve("gpt-4o")
    assert "demo" in unknown.value.message
    assert LLAMA in unknown.value.message


@pytest.mark.parametrize("model_id", ["../../etc", "/etc", "/", ".", "..", "~", "demo/../demo", "", "\0", "a" * 10_000])
def test_an_id_is_never_opened_as_a_path(model_id: str) -> None:
    with pytest.raises(ModelNotFound):
        Catalog("demo", [LLAMA]).resolve(model_id)


def test_a_real_model_folder_that_was_not_listed_is_not_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    catalog = Catalog(str(folder), [])
    for model_id in (str(tmp_path / "other"), "other", "./other", "./my-model", str(demo_model_path())):
        with pytest.raises(ModelNotFound):
            catalog.resolve(model_id)


@pytest.mark.anyio
async def test_a_folder_is_located_where_it_lies(folder: Path) -> None:
    assert await locate(ModelEntry("my-model", folder)) == folder


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere/at/all", "two words"])
async def test_a_name_that_is_neither_folder_nor_repo_id_cannot_be_loaded(name: str) -> None:
    entry = Catalog(name, []).resolve(name)
    with pytest.raises(ModelLoadFailed, match="neither a folder on this machine nor a Hugging Face repo id"):
        await locate(entry)


def models_in(parent: Path, *names: str) -> Path:
    for name in names:
        shutil.copytree(demo_model_path(), parent / name)
    return parent


def test_models_of_the_models_folder_are_loadable_by_their_place_in_it(tmp_path: Path) -> None:
    models_dir = models_in(tmp_path, "one", "org/two")
    (tmp_path / "notes").mkdir()
    catalog = Catalog("demo", [], models_dir=models_dir)
    assert ids(catalog) == ["demo", "one", "org/two"]
    assert catalog.resolve("org/two").folder == (models_dir / "org" / "two").resolve()


def test_a_model_that_comes_later_is_found_when_the_catalogue_is_refreshed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_manager.mlx_server.models.catalog.SCAN_SECONDS", 0)
    catalog = Catalog("demo", [], models_dir=tmp_path)
    assert not catalog.knows("late")
    models_in(tmp_path, "late")
    catalog.refresh()
    assert catalog.knows("late")


def test_links_out_of_the_models_folder_are_not_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = models_in(tmp_path / "outside", "secret")
    models_dir = models_in(tmp_path / "models", "good", "linked-file")
    (models_dir / "linked").symlink_to(outside / "secret")
    (models_dir / "linked-file" / "model.safetensors").unlink()
    (models_dir / "linked-file" / "model.safetensors").symlink_to(outside / "secret" / "model.safetensors")
    (models_dir / "inner").symlink_to(models_dir / "good")
    catalog = Catalog("demo", [], models_dir=models_dir)
    assert ids(catalog) == ["demo", "good", "inner"]
    assert "linked is not served: it is unreadable or links out" in caplog.text


def hub_model(cache: Path, repo: str, commit: str = "abc123", *, links: bool = True) -> Path:
    """A copy of the demo as the hub's client leaves it: a snapshot of links to blobs, or of files."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in (path for path in demo_model_path().iterdir() if path.is_file()):
        shutil.copy(file, folder / "blobs" / file.name if links else snapshot)
        if links:
            (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_models_of_the_hub_cache_are_loadable_when_they_are_whole_and_run(hub_cache: Path) -> None:
    whole = hub_model(hub_cache, "org/whole")
    (hub_model(hub_cache, "org/no-weights") / "model.safetensors").unlink()
    strange = hub_model(hub_cache, "org/strange")
    (strange / "config.json").unlink()
    (strange / "config.json").write_text('{"model_type": "perceptron"}')
    shards = hub_model(hub_cache, "org/half") / "model.safetensors.index.json"
    shards.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    catalog = Catalog("demo", [], hub_cache=True)
    assert ids(catalog) == ["demo", "org/whole"]
    assert catalog.resolve("org/whole").folder == whole
    assert ids(Catalog("demo", [], hub_cache=False)) == ["demo"]


def refs_missing(repo: Path) -> None:
    shutil.rmtree(repo / "refs")


def refs_moved_on(repo: Path) -> None:
    (repo / "refs" / "main").write_text("f" * 40)


def refs_moved_to_a_partial_one(repo: Path) -> None:
    (repo / "snapshots" / "fff").mkdir()
    (repo / "snapshots" / "fff" / "config.json").write_text("{}")
    (repo / "refs" / "main").write_text("fff")


def refs_with_a_line_end(repo: Path) -> None:
    (repo / "refs" / "main").write_text("abc123\n")


def refs_to_elsewhere(repo: Path) -> None:
    (repo / "refs" / "main").write_text("../../elsewhere")


def other_files(repo: Path) -> None:
    (repo / "snapshots" / ".DS_Store").touch()
    (repo / ".no_exist" / "abc123").mkdir(parents=True)
    refs_missing(repo)


LAYOUTS = [
    refs_missing,
    refs_moved_on,
    refs_moved_to_a_partial_one,
    refs_with_a_line_end,
    refs_to_elsewhere,
    other_files,
]


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_snapshot_is_found_whatever_the_refs_say(
    hub_cache: Path, layout: Callable[[Path], None], links: bool
) -> None:
    whole = hub_model(hub_cache, "org/model", links=links)
    layout(whole.parent.parent)
    catalog = Catalog("demo", [], hub_cache=True)
    assert ids(catalog) == ["demo", "org/model"]
    assert catalog.resolve("org/model").local_folder() == whole


def test_of_several_snapshots_the_one_of_the_refs_is_loaded_else_the_newest(hub_cache: Path) -> None:
    for age, commit in enumerate(["newest", "middle", "oldest"]):
        os.utime(hub_model(hub_cache, "org/model", commit), (1e9 - age, 1e9 - age))
    repo = hub_cache / "models--org--model"
    (repo / "refs" / "main").write_text("middle")
    entry = Catalog("demo", ["org/model"]).resolve("org/model")
    assert entry.local_folder() == repo / "snapshots" / "middle"
    (repo / "refs" / "main").unlink()
    assert entry.local_folder() == repo / "snapshots" / "newest"


@pytest.mark.parametrize("revision", ["0ld", "main", "v1.0", "refs/pr/1"])
def test_a_revision_is_that_one_or_none(hub_cache: Path, revision: str) -> None:
    old, repo = hub_model(hub_cache, "org/model", "0ld"), hub_cache / "models--org--model"
    settings = ModelSettings(id="mine", repo="org/model", revision=revision)
    entry = Catalog("demo", [], models=[settings]).resolve("mine")
    (repo / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    if revision != "0ld":
        (repo / "refs" / revision).write_text("gone")
        assert entry.local_folder() is None
        (repo / "refs" / revision).write_text("0ld")
    assert entry.local_folder() == old


def lose_blob(snapshot: Path) -> None:
    (snapshot / "model.safetensors").resolve().unlink()


def lose_tokenizer(snapshot: Path) -> None:
    (snapshot / "tokenizer.json").unlink()


def lose_shard_and_index(snapshot: Path) -> None:
    (snapshot / "model.safetensors").rename(snapshot / "model-00002-of-00003.safetensors")


@pytest.mark.parametrize("damage", [lose_blob, lose_tokenizer, lose_shard_and_index])
def test_a_partial_snapshot_is_not_offered(hub_cache: Path, damage: Callable[[Path], None]) -> None:
    damage(hub_model(hub_cache, "org/model"))
    assert ids(Catalog("demo", [], hub_cache=True)) == ["demo"]


@pytest.mark.parametrize(
    ("variable", "place"), [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")]
)
def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, place: str
) -> None:
    whole = hub_model(tmp_path / "cache" / place, "org/model")
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "cache"))
    command = "from mlx_manager.mlx_server.models.hub import cached_folder; print(cached_folder('org/model'))"
    found = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert found.stdout.strip() == str(whole)


@pytest.mark.anyio
async def test_a_model_in_the_cache_is_loaded_without_asking_the_hub(hub_cache: Path) -> None:
    whole = hub_model(hub_cache, "org/whole")
    assert await locate(Catalog("demo", ["org/whole"]).resolve("org/whole")) == whole


def test_entries_of_the_settings_file_have_ids_aliases_and_revisions(folder: Path, hub_cache: Path) -> None:
    old = hub_model(hub_cache, "org/model", "0ld")
    entries = [
        ModelSettings(id="mine", path=folder, aliases=["gpt-4o", "best"]),
        ModelSettings(id="pinned-down", repo="org/model", revision="0ld"),
        ModelSettings(id="demo", ttl=60),
    ]
    catalog = Catalog("gpt-4o", [], models=entries)
    assert catalog.default_id == "mine"
    assert ids(catalog) == ["mine", "pinned-down", "demo"]
    assert catalog.resolve("best").folder == folder.resolve()
    assert catalog.resolve("pinned-down").local_folder() == old
    assert catalog.resolve("demo").folder == demo_model_path().resolve()
    assert catalog.resolve("demo").settings == entries[2]


def test_an_alias_near_to_an_unknown_id_is_named(folder: Path) -> None:
    catalog = Catalog("demo", [], models=[ModelSettings(id="mine", path=folder, aliases=["gpt-4o"])])
    with pytest.raises(ModelNotFound, match="Did you mean: gpt-4o"):
        catalog.resolve("gpt-4")


@pytest.mark.parametrize(
    "model_id", ["org/other", "../../etc", "/etc/passwd", "~", "file:///etc", "org/../x", "a--b/c"]
)
def test_only_named_models_are_downloaded_unless_that_is_on(model_id: str) -> None:
    with pytest.raises(ModelNotFound):
        Catalog("demo", [LLAMA]).resolve(model_id)
    if model_id != "org/other":  # and a path never is
        with pytest.raises(ModelNotFound):
            Catalog("demo", [LLAMA], allow_downloads=True).resolve(model_id)


def test_any_repo_may_be_downloaded_when_that_is_on() -> None:
    assert Catalog("demo", [], allow_downloads=True).resolve("org/other") == ModelEntry("org/other", None)


def test_the_default_model_answers_for_unknown_ones_when_that_is_on() -> None:
    assert Catalog("demo", [], default_for_unknown=True).resolve("gpt-4o").id == "demo"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS makes no such names")
@pytest.mark.parametrize("place", ["models_dir", "link", "hub_cache", "available"])
def test_folder_whose_name_is_not_utf_8_is_left_out_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    names = {"hub_cache": b"models--org--bad\xff", "available": b"bad\xff", "link": b"real\xff"}
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + names.get(place, b"bad\xff")))
    shutil.copytree(demo_model_path(), folder)
    shutil.copytree(demo_model_path(), tmp_path / "good")
    if place == "link":
        (tmp_path / "fine").symlink_to(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(catalog_module, "SCAN_SECONDS", 0)
    catalog = Catalog(
        "demo",
        [str(folder)] if place == "available" else [],
        models_dir=tmp_path if place in ("models_dir", "link") else None,
        hub_cache=place == "hub_cache",
    )
    catalog.refresh()
    assert ids(catalog) == ["demo", "good"] if place in ("models_dir", "link") else ["demo"]
    warnings = [record.getMessage() for record in caplog.records if "not UTF-8" in record.getMessage()]
    assert len(warnings) == 1, warnings
    "".join([*warnings, *ids(catalog)]).encode("utf-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_folders_that_may_not_be_entered_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(demo_model_path(), closed / "one")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(closed / "hub"))
    closed.chmod(0)
    try:
        assert ids(Catalog("demo", [], models_dir=tmp_path, hub_cache=True)) == ["demo"]
    finally:
        closed.chmod(0o700)
