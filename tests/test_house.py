"""The plan of the house (ARCHITECTURE, "Rooms"), held by the imports: they point downwards only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_server import HANG_SECONDS

BACKEND = Path(__file__).parents[1] / "backend"
SERVER = "mlx_manager.mlx_server"

FLOORS = (
    {
        f"{SERVER}.__init__",
        "mlx_manager.__init__",
        "mlx_manager.demo",
        "mlx_manager.addresses",
        "mlx_manager.plugins",
        "mlx_manager.proxies",
        "mlx_manager.streams",
        "mlx_manager.utf8",
        "mlx_manager.web",
        "mlx_manager.command_line.clients",
        f"{SERVER}.kinds",
        f"{SERVER}.machine",
        f"{SERVER}.bounds",
    },  # import nothing
    {
        f"{SERVER}.{room}"
        for room in ("upstream_settings", "request_settings", "security_settings", "setting_names", "records")
    },
    {f"{SERVER}.rank_settings"},
    {f"{SERVER}.model_settings"},
    {f"{SERVER}.{room}" for room in ("errors", "config", "observability")},
    {f"{SERVER}.types"},
    {f"{SERVER}.{room}" for room in ("folding", "embedding_types", "engine.membership")},
    {f"{SERVER}.{room}" for room in ("schemas", "engine.messages", "utils", "isolation")},
    {f"{SERVER}.{room}" for room in ("protocols", "models", "engine", "grammars", "templates", "parsers")}
    | {"mlx_manager.providers"},
    {f"{SERVER}.services"},
    {f"{SERVER}.api"},
    {f"{SERVER}.main"},
    {"mlx_manager.command_line"},
    {"mlx_manager.cli"},
)
"""The rooms from the ground up. A module lives in the room with the longest name that its own begins with."""

NEIGHBOURS = {
    (f"{SERVER}.observability", f"{SERVER}.config"),  # it is told what to configure
    (f"{SERVER}.models", f"{SERVER}.engine"),  # the pool owns the workers
    (f"{SERVER}.models", f"{SERVER}.parsers"),  # an adapter names its output's format
    (f"{SERVER}.models", f"{SERVER}.grammars"),  # the processes that try grammars out
    (f"{SERVER}.models", f"{SERVER}.templates"),  # and those that render chat templates
}
"""Rooms of one floor of which the first may import the second."""

WORKER_MODULES = (
    "batch",
    "batching",
    "compiled_decode",
    "core",
    "device",
    "dtypes",
    "disk_cache",
    "disk_files",
    "disk_format",
    "disk_tier",
    "embedding.bert",
    "embedding.decoders",
    "embedding.layers",
    "embedding.model",
    "embedding.modernbert",
    "embedding.nomic",
    "embedding.pooling",
    "embedding.queue",
    "encoder",
    "follower",
    "generator",
    "grammar",
    "groups",
    "kv_cache",
    "kv_memory",
    "ledger",
    "logprobs",
    "model_config",
    "pacing",
    "penalties",
    "plan",
    "prefix_cache",
    "prefix_tree",
    "prompt_queue",
    "rank_facts",
    "ranked_runner",
    "ranks",
    "refusal",
    "rows",
    "runner",
    "sampling",
    "scheduler",
    "shapes",
    "sharding",
    "warm_up",
    "worker",
)
WORKER_SIDE = {f"{SERVER}.engine.{name}" for name in WORKER_MODULES}
API_MODULES = ("client", "encoder_client", "group_client", "sequences", "worker_client")
API_ROOMS = ("api", "services", "protocols", "models", "schemas", *(f"engine.{one}" for one in API_MODULES))
API_SIDE = {f"{SERVER}.{room}" for room in API_ROOMS}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(BACKEND).with_suffix("").parts)


MODULES = {module_name(file): file for file in sorted((BACKEND / "mlx_manager").rglob("*.py"))}


def imports(module: str, source: str) -> Iterator[str]:
    """Modules that `source` imports, also inside of functions; a name from a package is the module it may be."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module is not None else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def resolve(name: str) -> str | None:
    """The module of ours that `name` is, or is in; None for other people's."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for candidate in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if candidate in MODULES:
                return candidate
    return None


def room_of(module: str) -> str:
    rooms = [room for floor in FLOORS for room in floor if f"{module}.".startswith(f"{room}.")]
    assert rooms, f"{module} is in no room: give it a place in FLOORS, and in ARCHITECTURE"
    return max(rooms, key=len)


def floor_of(room: str) -> int:
    return next(height for height, floor in enumerate(FLOORS) if room in floor)


def climbs(module: str, source: str) -> list[str]:
    """The imports of `source` that lead upwards, or into another room of the same floor."""
    here = room_of(module)
    wrong = []
    for target in filter(None, map(resolve, imports(module, source))):
        there = room_of(target)
        downwards = floor_of(there) < floor_of(here)
        if not (downwards or there == here or (here, there) in NEIGHBOURS):
            wrong.append(f"{module} imports {target}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards_only(module: str) -> None:
    assert climbs(module, MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (f"{SERVER}.types", f"from {SERVER}.api import respond"),
        (f"{SERVER}.models.catalog", f"import {SERVER}.services.inference"),
        (f"{SERVER}.services.inference", "def late() -> None:\n    from ..api.v1 import chat"),
        (f"{SERVER}.errors", "from .main import app"),
        (f"{SERVER}.protocols.chat", f"from {SERVER}.models.pool import get_model_pool"),
        (f"{SERVER}.engine.messages", f"from {SERVER}.engine.client import EngineClient"),
        (f"{SERVER}.config", f"from {SERVER} import observability"),
    ],
)
def test_an_import_that_climbs_is_found(module: str, source: str) -> None:
    assert len(climbs(module, source)) == 1


@pytest.mark.parametrize("module", sorted(WORKER_SIDE))
def test_the_worker_knows_nothing_of_the_api_process(module: str) -> None:
    targets = set(filter(None, map(resolve, imports(module, MODULES[module].read_text("utf-8")))))
    assert {target for target in targets for room in API_SIDE if f"{target}.".startswith(f"{room}.")} == set()


def importers(package: str) -> set[str]:
    sources = {module: file.read_text("utf-8") for module, file in MODULES.items()}
    return {
        module
        for module, source in sources.items()
        if any(f"{name}.".startswith(f"{package}.") for name in imports(module, source))
    }


@pytest.mark.parametrize("package", ["logfire", "opentelemetry", "prometheus_client"])
def test_only_observability_imports_what_watches_the_server(package: str) -> None:
    assert {room_of(module) for module in importers(package)} == {f"{SERVER}.observability"}


MAY_IMPORT = {
    "mlx": WORKER_SIDE | {f"{SERVER}.utils.memory", "mlx_manager.command_line.mlx_probe"},
    "mlx_lm": WORKER_SIDE,
    "transformers": WORKER_SIDE | {f"{SERVER}.models.converter"},
}
"""Modules that run in the worker, in a process that ends, or that import on use what no API process calls."""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_only_the_worker_and_named_processes_import_what_computes(package: str) -> None:
    found = importers(package)
    assert found
    assert found <= MAY_IMPORT[package]


def test_the_api_process_imports_no_module_of_another_process() -> None:
    heavy = WORKER_SIDE | {f"{SERVER}.models.converter"}
    late = {f"{SERVER}.models.conversion"}  # takes its limits from there
    sources = {module: file.read_text("utf-8") for module, file in MODULES.items() if module not in heavy | late}
    found = {(m, target) for m, source in sources.items() for target in map(resolve, imports(m, source))}
    assert {(m, target) for m, target in found if target in heavy and not m.startswith("mlx_manager.command")} == set()


def test_importing_the_scheduler_does_not_import_mlx() -> None:
    command = f"import sys, {SERVER}.engine.scheduler; print({{'mlx', 'mlx_lm'}} & {{*sys.modules}})"
    assert run_python(command).strip() == "set()"


def test_processes_are_started_without_what_makes_python_or_uvloop_fork_on_macos() -> None:
    """A fork of a process whose GPU is up ends badly; uvloop takes posix_spawn where neither is asked for."""
    calls = [node for file in MODULES.values() for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    named = {keyword.arg for node in calls if isinstance(node, ast.Call) for keyword in node.keywords}
    assert "start_new_session" in named
    assert named.isdisjoint({"pass_fds", "preexec_fn"})


def test_http_is_known_to_the_api_and_what_starts_it_only() -> None:
    assert {room_of(module) for module in importers("fastapi")} <= {f"{SERVER}.{room}" for room in ("api", "main")}


def test_providers_stand_beside_the_server_and_do_not_import_it() -> None:
    assert not {module for module in importers(SERVER) if module.startswith("mlx_manager.providers")}


def run_python(command: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", command], cwd=BACKEND, check=True, capture_output=True, text=True, timeout=HANG_SECONDS
    ).stdout


@pytest.mark.parametrize("module", ["main", "config", "models.adapters"])
def test_importing_the_server_is_quick_for_it_imports_neither_mlx_nor_transformers(module: str) -> None:
    heavy = "{'mlx', 'mlx_lm', 'transformers', 'torch'}"
    command = f"import sys, {SERVER}.{module}; print({heavy} & {{name.split('.')[0] for name in sys.modules}})"
    assert run_python(command).strip() == "set()"


def test_an_adapter_can_be_checked_in_one_line_from_the_backend_folder() -> None:
    run_python(
        "from mlx_manager.mlx_server.models.adapters import ModelAdapter, LlamaAdapter; "
        "assert isinstance(LlamaAdapter(), ModelAdapter)"
    )
