"""The wire schemas of models. One object combines OpenAI's and Anthropic's fields."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlx_manager.mlx_server.kinds import ModelKind


class Support(BaseModel):
    supported: bool


class ThinkingTypes(BaseModel):
    adaptive: Support
    between_tools: Support
    disabled: Support
    enabled: Support


class ThinkingSupport(Support):
    types: ThinkingTypes


class ContextManagementSupport(Support):
    clear_thinking_20251015: Support
    clear_tool_uses_20250919: Support
    compact_20260112: Support


class EffortSupport(Support):
    low: Support
    medium: Support
    high: Support
    xhigh: Support
    max: Support


class ServerToolsSupport(Support):
    code_execution: Support
    web_search: Support


class ModelCapabilities(BaseModel):
    """Capabilities of a model, in this server's terms and in Anthropic's.

    `tools` is `prompted` if the chat template does not support tools and the server's own prompt describes them.
    """

    chat: bool
    tools: Literal["native", "prompted", False]
    reasoning: bool
    structured_output: bool
    batch: Support
    citations: Support
    code_execution: Support
    context_management: ContextManagementSupport
    effort: EffortSupport
    image_input: Support
    pdf_input: Support
    server_tools: ServerToolsSupport
    structured_outputs: Support
    thinking: ThinkingSupport


class LlamaCppMeta(BaseModel):
    """Where clients of llama.cpp's server look for the context."""

    n_ctx: int


class ModelInfo(BaseModel):
    """Fields read from the model's files are null before the download.

    The context appears under every name that clients read. An answer may fill all that the prompt leaves.
    """

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["model"] = "model"
    type: Literal["model"] = "model"
    created: int
    created_at: datetime | None = None
    display_name: str | None = None
    lifecycle: Literal["active"] = "active"
    owned_by: str = "mlx-manager"
    loaded: bool = False
    aliases: list[str] = []
    context_length: int | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    context_window: int | None = None
    max_model_len: int | None = None
    max_output_tokens: int | None = None
    meta: LlamaCppMeta | None = None
    kind: ModelKind | None = None
    size_bytes: int | None = None
    """Memory of the weights."""
    quantization: str | None = None
    family: str | None = None
    capabilities: ModelCapabilities | None = None


class CodexEffort(BaseModel):
    effort: str
    description: str


class CodexTruncation(BaseModel):
    mode: Literal["tokens"] = "tokens"
    limit: int


class CodexModel(BaseModel):
    """A model in the format of Codex's catalogue. Codex calls custom tools `freeform`."""

    slug: str
    display_name: str
    description: str
    default_reasoning_level: str | None
    supported_reasoning_levels: list[CodexEffort]
    shell_type: Literal["shell_command"] = "shell_command"
    visibility: Literal["list"] = "list"
    supported_in_api: Literal[True] = True
    priority: int
    upgrade: None = None
    base_instructions: str
    supports_reasoning_summaries: Literal[True] = True
    support_verbosity: Literal[False] = False
    default_verbosity: None = None
    apply_patch_tool_type: Literal["freeform"] = "freeform"
    truncation_policy: CodexTruncation
    supports_parallel_tool_calls: Literal[True] = True
    context_window: int | None
    max_context_window: int | None
    experimental_supported_tools: list[str] = []
    input_modalities: list[Literal["text"]] = ["text"]
    tool_mode: Literal["direct"] = "direct"


class ModelListResponse(BaseModel):
    """All models on one page. `models` repeats them in Codex's format."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
    models: list[CodexModel] = []
    has_more: Literal[False] = False
    first_id: str | None = None
    last_id: str | None = None
