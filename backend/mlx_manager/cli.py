"""The command line: parses arguments and calls the commands in `command_line/`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlx_manager.command_line import service_options
from mlx_manager.command_line.console import run, whole_output
from mlx_manager.plugins import leave_out_logfire

app = typer.Typer(
    help="OpenAI-compatible inference server for MLX models.",
    epilog="Example: mlx-manager serve, and in another terminal: mlx-manager chat",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(service_options.app, name="service")

BaseUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Address of the server. Default: from the settings (port 8000).")
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="MLX_MANAGER_API_KEY", metavar="KEY", help="API key of the server. Default: from the settings."
    ),
]
Backend = Annotated[
    str | None, typer.Option(metavar="NAME", help="Between ranks: ring, jaccl or nccl (as in the hosts file).")
]
Parallel = Annotated[str | None, typer.Option(metavar="HOW", help="Divide by tensor, pipeline or auto (auto).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON, for scripts.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from mlx_manager.mlx_server import __version__

        print(f"mlx-manager {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """OpenAI-compatible inference server for MLX models."""


@app.command(epilog="Example: mlx-manager serve mlx-community/Llama-3.2-3B-Instruct-4bit --port 8001")
def serve(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="demo, a Hugging Face repo id, or a local folder.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on (8000).")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, resolve_path=True, metavar="FILE", help="TOML file with settings and models."
        ),
    ] = None,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Allow other interfaces without API keys.")
    ] = False,
    no_warm_up: Annotated[
        bool, typer.Option("--no-warm-up", help="Accept requests without running a loaded model first.")
    ] = False,
    ranks: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes on this machine that share the model (1).")
    ] = None,
    hosts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            resolve_path=True,
            metavar="FILE",
            help="Machines that share it; MLX's hosts file.",
        ),
    ] = None,
    backend: Backend = None,
    parallel: Parallel = None,
) -> None:
    """Serve MODEL on http://127.0.0.1:8000/v1 until Ctrl-C."""
    from mlx_manager.command_line import serve as command

    group = command.RankOptions(ranks, hosts, backend, parallel)
    run(lambda: command.serve(model, host, port, config, insecure_no_auth, no_warm_up, group))


@app.command(epilog="Example: mlx-manager rank ~/models/big --join hosts.json --rank 1")
def rank(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The folder or repo id of the model that is served.")],
    join: Annotated[
        Path,
        typer.Option(
            exists=True, dir_okay=False, resolve_path=True, metavar="FILE", help="The hosts file of the server."
        ),
    ],
    number: Annotated[int, typer.Option("--rank", min=1, max=63, help="Which host of the file this machine is.")],
    backend: Backend = None,
    parallel: Parallel = None,
) -> None:
    """Run one rank of a model that a server on another machine serves with --hosts, until Ctrl-C."""
    from mlx_manager.command_line import rank as command

    run(lambda: command.rank(model, join, number, backend, parallel))


@app.command(epilog="Example: mlx-manager models --json")
def models(base_url: BaseUrl = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """List the models of the running server, else those that serve would offer."""
    from mlx_manager.command_line import models as command

    run(lambda: command.models(base_url, api_key, as_json))


@app.command(epilog="Example: mlx-manager pull mlx-community/Llama-3.2-3B-Instruct-4bit")
def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="A Hugging Face repo id, such as mlx-community/Qwen3-4B-4bit.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit. Default: the newest.")] = None,
) -> None:
    """Download a model from the Hugging Face hub. Continues an earlier pull."""
    from mlx_manager.command_line import pull as command

    run(lambda: command.pull(repo, revision))


@app.command(epilog="Example: mlx-manager chat demo --system 'You are a pirate.'")
def chat(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A model id of the server, a repo id, or a folder.")
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None,
) -> None:
    """Chat in the terminal. Starts a server if none runs. Input from a pipe is one message."""
    from mlx_manager.command_line import chat as command

    run(lambda: command.chat(model, base_url, api_key, system))


@app.command(epilog="Example: mlx-manager launch codex --model coder -- exec 'List the files here'")
def launch(
    client: Annotated[
        str | None,
        typer.Argument(metavar="CLIENT", help="claude, codex, opencode, qwen, continue, aider, llm; see --list."),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGS", help="Arguments for the client, after `--`.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="An id of the server, a repo id, or a folder.")] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    only_print: Annotated[
        bool, typer.Option("--print", help="Show settings, changes and command; write and start nothing.")
    ] = False,
    list_clients: Annotated[bool, typer.Option("--list", help="List the clients, and which are installed.")] = False,
) -> None:
    """Start a coding agent on a model; starts a server for it when none runs, and sets the agent up."""
    from mlx_manager.command_line import launch as command

    if list_clients:
        run(command.list_clients)
        return
    if client is None:
        raise typer.BadParameter("Name a client, or give --list.", param_hint="CLIENT")
    run(lambda: command.launch(client, model, base_url, api_key, arguments or (), only_print))


@app.command(epilog="Example: mlx-manager bench --clients 1 --clients 8 --tokens 64")
def bench(
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="A model id of the server. Default: a loaded model.")] = None,
    clients: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Concurrent clients; repeat the option for several levels (1, 4, 16)."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Requests of each client.")] = 2,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens in each answer (128); with --tools, at most this many (512).")
    ] = None,
    tools: Annotated[bool, typer.Option("--tools", help="Measure tool calls instead, with 40 questions.")] = False,
    picture: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE", help="With --tools: draw the result as SVG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a server: tokens per second, time to first token, time between chunks; or a model's tool calls."""
    if tools:
        from mlx_manager.command_line.bench_tools import bench_tools

        run(lambda: bench_tools(base_url, api_key, model, tokens if tokens is not None else 512, picture, as_json))
        return
    if picture is not None:
        raise typer.BadParameter("It draws what --tools measures: give both.", param_hint="--picture")
    from mlx_manager.command_line import bench as command

    counts = clients if clients is not None else command.DEFAULT_CLIENTS
    length = tokens if tokens is not None else 128
    run(lambda: command.bench(base_url, api_key, model, counts, rounds, length, as_json))


@app.command(epilog="Example: mlx-manager ps")
def ps(base_url: BaseUrl = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show the loaded models of the running server, their speed and memory."""
    from mlx_manager.command_line import ps as command

    run(lambda: command.ps(base_url, api_key, as_json))


@app.command(epilog="Example: mlx-manager cache ls")
def cache(
    action: Annotated[Literal["ls", "clear", "verify"], typer.Argument(metavar="ls|clear|verify")] = "ls",
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Only this model's files.")] = None,
    as_json: AsJson = False,
) -> None:
    """List, remove or check the prompt prefixes that the server keeps on disk."""
    from mlx_manager.command_line import cache as command

    run(lambda: command.cache(action, model, as_json))


@app.command(epilog="Example: mlx-manager doctor")
def doctor(as_json: AsJson = False) -> None:
    """Check whether this machine can run the server, and name remedies."""
    from mlx_manager.command_line import doctor as command

    run(lambda: command.doctor(as_json))


def main() -> None:
    leave_out_logfire()
    with whole_output():
        app()
