"""The coding agents and tools that `launch` supports: what each needs of a model, and its configuration.

One table. Knows nothing of servers, files or processes.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

KEY_VARIABLE = "MLX_MANAGER_API_KEY"
NO_KEY = "none"
"""What clients that insist on a key send to a server that asks for none."""
PROVIDER = "mlx-manager"
REQUEST_MILLISECONDS = 1_800_000
"""A first prompt of 20,000 tokens takes minutes on a small machine."""
MOST_OUTPUT_TOKENS = 32_000


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the model that a client is to use. `context_tokens` is None where the server does not know it."""

    root: str
    key: str
    model: str
    context_tokens: int | None
    reasoning: bool
    catalog: str
    """`models` of /v1/models as JSON: what Codex reads."""

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    @property
    def output_tokens(self) -> int | None:
        """A quarter of the context: the client compacts the conversation when the rest is full."""
        return None if self.context_tokens is None else min(MOST_OUTPUT_TOKENS, self.context_tokens // 4)


@dataclass(frozen=True, slots=True)
class JsonFile:
    """`content` is merged into the file. A file that is `ours` is written whole."""

    path: Path
    content: Mapping[str, object]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class YamlItem:
    """One item of the list that the file is, in JSON, which is YAML; a marked line that a later launch replaces."""

    path: Path
    item: Mapping[str, object]


ConfigFile = JsonFile | YamlItem


@dataclass(frozen=True, slots=True)
class Setup:
    """How a client is started. `arguments` go before those of the user; `steps` are for a person to do."""

    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()
    files: tuple[ConfigFile, ...] = ()
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Client:
    """`program` is None for `--print` alone.

    `first_request_tokens` were measured with the client's default prompt and tools and the demo model's tokenizer
    (docs/agents.md); those of `--print` clients are estimates.
    """

    name: str
    program: str | None
    install: str
    first_request_tokens: int
    needs_tools: bool
    set_up: Callable[[Target, Mapping[str, str]], Setup]


def _home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("HOME") or Path.home())


def _known(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _claude(target: Target, _: Mapping[str, str]) -> Setup:
    names = ("MODEL", "DEFAULT_OPUS_MODEL", "DEFAULT_SONNET_MODEL", "DEFAULT_HAIKU_MODEL", "SMALL_FAST_MODEL")
    limits = _known(
        CLAUDE_CODE_MAX_OUTPUT_TOKENS=target.output_tokens, CLAUDE_CODE_MAX_CONTEXT_TOKENS=target.context_tokens
    )
    return Setup(
        {
            "ANTHROPIC_BASE_URL": target.root,
            "ANTHROPIC_AUTH_TOKEN": target.key,
            **{f"ANTHROPIC_{name}": target.model for name in names},
            **{name: str(value) for name, value in limits.items()},
            "API_TIMEOUT_MS": str(REQUEST_MILLISECONDS),
            "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # a line that changes at every request, in front of the prompt
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
    )


def _codex(target: Target, environment: Mapping[str, str]) -> Setup:
    home = Path(environment.get("CODEX_HOME") or _home(environment) / ".codex")
    catalog = JsonFile(home / f"{PROVIDER}.json", {"models": json.loads(target.catalog)}, ours=True)
    provider = f"model_providers.{PROVIDER}"
    compact_at = None
    if target.context_tokens is not None and target.output_tokens is not None:
        compact_at = target.context_tokens - target.output_tokens
    settings = _known(
        model=target.model,
        model_provider=PROVIDER,
        model_catalog_json=str(catalog.path),
        model_context_window=target.context_tokens,
        model_auto_compact_token_limit=compact_at,
        web_search="disabled",
    ) | {
        f"{provider}.name": PROVIDER,
        f"{provider}.base_url": target.url,
        f"{provider}.wire_api": "responses",
        f"{provider}.env_key": KEY_VARIABLE,
        f"{provider}.stream_idle_timeout_ms": REQUEST_MILLISECONDS,
    }
    arguments = (part for name, value in settings.items() for part in ("-c", f"{name}={json.dumps(value)}"))
    return Setup({KEY_VARIABLE: target.key}, tuple(arguments), (catalog,))


def _opencode(target: Target, environment: Mapping[str, str]) -> Setup:
    folder = Path(environment.get("XDG_CONFIG_HOME") or _home(environment) / ".config") / "opencode"
    limit = _known(context=target.context_tokens, output=target.output_tokens)
    model = {"name": target.model, "tool_call": True, "reasoning": target.reasoning}
    options = {"baseURL": target.url, "apiKey": f"{{env:{KEY_VARIABLE}}}", "timeout": REQUEST_MILLISECONDS}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": PROVIDER,
        "options": options,
        "models": {target.model: model | ({"limit": limit} if limit else {})},
    }
    content = {"$schema": "https://opencode.ai/config.json", "provider": {PROVIDER: provider}}
    chosen = {"model": f"{PROVIDER}/{target.model}", "small_model": f"{PROVIDER}/{target.model}"}
    return Setup(
        {KEY_VARIABLE: target.key, "OPENCODE_CONFIG_CONTENT": json.dumps(chosen)},
        files=(JsonFile(folder / "opencode.json", content),),
    )


def _qwen(target: Target, environment: Mapping[str, str]) -> Setup:
    generation = _known(
        timeout=REQUEST_MILLISECONDS,
        contextWindowSize=target.context_tokens,
        samplingParams=None if target.output_tokens is None else {"max_tokens": target.output_tokens},
    )
    model = {
        "id": target.model,
        "name": f"{target.model} ({PROVIDER})",
        "baseUrl": target.url,
        "envKey": KEY_VARIABLE,
        "generationConfig": generation,
    }
    settings = JsonFile(_home(environment) / ".qwen" / "settings.json", {"modelProviders": {"openai": [model]}})
    names = {"OPENAI_BASE_URL": target.url, "OPENAI_API_KEY": target.key, "OPENAI_MODEL": target.model}
    arguments = ("--auth-type", "openai", "--model", target.model)
    return Setup({KEY_VARIABLE: target.key, **names}, arguments, (settings,))


def _continue(target: Target, environment: Mapping[str, str]) -> Setup:
    model = {
        "name": target.model,
        "provider": "openai",
        "model": target.model,
        "apiBase": target.url,
        "apiKey": target.key,
        "roles": ["chat", "edit", "apply"],
        "capabilities": ["tool_use"],
        "defaultCompletionOptions": _known(contextLength=target.context_tokens, maxTokens=target.output_tokens),
        "requestOptions": {"timeout": REQUEST_MILLISECONDS // 1000},
    }
    content = {"name": PROVIDER, "version": "1.0.0", "schema": "v1", "models": [model]}
    path = _home(environment) / ".continue" / f"{PROVIDER}.yaml"
    return Setup({}, ("--config", str(path)), (JsonFile(path, content, ours=True),))


def _aider(target: Target, environment: Mapping[str, str]) -> Setup:
    path = _home(environment) / f".aider.{PROVIDER}.metadata.json"
    limits = _known(max_input_tokens=target.context_tokens, max_output_tokens=target.output_tokens)
    prices = {"input_cost_per_token": 0, "output_cost_per_token": 0}
    model = f"openai/{target.model}"
    content = {model: {**limits, "litellm_provider": "openai", "mode": "chat", **prices}}
    arguments = ("--model", model, "--weak-model", model, "--model-metadata-file", str(path))
    stable = ("--map-refresh", "manual")  # the map of the repository stands before the chat: a new one is a new prefix
    limits_of_time = ("--timeout", str(REQUEST_MILLISECONDS // 1000))
    return Setup(
        {"OPENAI_API_BASE": target.url, "OPENAI_API_KEY": target.key},
        (*arguments, *stable, *limits_of_time, "--no-show-model-warnings"),
        (JsonFile(path, content, ours=True),),
    )


def _llm(target: Target, environment: Mapping[str, str]) -> Setup:
    app = "io.datasette.llm"
    in_home = f"Library/Application Support/{app}" if platform.system() == "Darwin" else f".config/{app}"
    folder = Path(environment.get("LLM_USER_PATH") or _home(environment) / in_home)
    name = f"{PROVIDER}/{target.model}"
    item = _known(
        model_id=name,
        model_name=target.model,
        api_base=target.url,
        api_key_name=PROVIDER if target.key != NO_KEY else None,
        supports_tools=True,
        supports_schema=True,
    )
    return Setup(
        {"LLM_MODEL": name, "OPENAI_API_KEY": target.key}, files=(YamlItem(folder / "extra-openai-models.yaml", item),)
    )


def _goose(target: Target, _: Mapping[str, str]) -> Setup:
    limits = {} if target.context_tokens is None else {"GOOSE_CONTEXT_LIMIT": str(target.context_tokens)}
    names = {"GOOSE_PROVIDER": "openai", "GOOSE_MODEL": target.model, "OPENAI_HOST": target.root}
    timeout = {"OPENAI_TIMEOUT": str(REQUEST_MILLISECONDS // 1000)}
    return Setup({**names, "OPENAI_API_KEY": target.key, **limits, **timeout}, steps=("goose session",))


def _cline(target: Target, _: Mapping[str, str]) -> Setup:
    context = f", Context Window Size {target.context_tokens}" if target.context_tokens is not None else ""
    output = f", Max Output Tokens {target.output_tokens}" if target.output_tokens is not None else ""
    fields = f"Base URL {target.url}, API Key {target.key}, Model ID {target.model}"
    return Setup(
        {}, steps=("Settings, API Provider: OpenAI Compatible", fields, f"Model Configuration{context}{output}")
    )


def _zed(target: Target, environment: Mapping[str, str]) -> Setup:
    model = _known(name=target.model, max_tokens=target.context_tokens, max_output_tokens=target.output_tokens)
    capabilities = {"tools": True, "images": False, "parallel_tool_calls": True}
    provider = {"api_url": target.url, "available_models": [{**model, "capabilities": capabilities}]}
    path = _home(environment) / ".config" / "zed" / "settings.json"
    return Setup(
        {"MLX_MANAGER_API_KEY": target.key},  # Zed makes the variable's name from the provider's
        files=(JsonFile(path, {"language_models": {"openai_compatible": {PROVIDER: provider}}}),),
        steps=(f"In the agent panel choose {target.model} of {PROVIDER}",),
    )


def _openwebui(target: Target, _: Mapping[str, str]) -> Setup:
    names = {"OPENAI_API_BASE_URL": target.url, "OPENAI_API_KEY": target.key, "ENABLE_OLLAMA_API": "false"}
    return Setup(
        {**names, "AIOHTTP_CLIENT_TIMEOUT": str(REQUEST_MILLISECONDS // 1000)},
        steps=(
            "open-webui serve",
            "# Where it has run before, it keeps its connections: add this one in Admin Settings, Connections",
        ),
    )


CLIENTS = {
    client.name: client
    for client in (
        Client("claude", "claude", "npm install -g @anthropic-ai/claude-code", 16_700, True, _claude),
        Client("codex", "codex", "npm install -g @openai/codex", 5_800, True, _codex),
        Client("opencode", "opencode", "npm install -g opencode-ai", 11_500, True, _opencode),
        Client("qwen", "qwen", "npm install -g @qwen-code/qwen-code", 24_300, True, _qwen),
        Client("continue", "cn", "npm install -g @continuedev/cli", 1_500, True, _continue),
        Client("aider", "aider", "python3 -m pip install aider-install && aider-install", 1_200, False, _aider),
        Client("llm", "llm", "python3 -m pip install llm", 100, False, _llm),
        Client("cline", None, "code --install-extension saoudrizwan.claude-dev", 12_000, True, _cline),
        Client("goose", None, "brew install block-goose-cli", 8_000, True, _goose),
        Client("zed", None, "brew install --cask zed", 8_000, True, _zed),
        Client("openwebui", None, "python3 -m pip install open-webui", 500, False, _openwebui),
    )
}
