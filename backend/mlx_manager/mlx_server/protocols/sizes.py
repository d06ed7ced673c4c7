"""Size limits of request bodies, checked before validation. Pure."""

from mlx_manager.mlx_server.bounds import Bounds
from mlx_manager.mlx_server.errors import InvalidRequest
from mlx_manager.mlx_server.types import CHARACTERS_PER_TOKEN


def check_sizes(body: object, bounds: Bounds) -> None:
    """Checks a parsed body before the slow validation. Raises InvalidRequest, which names the field."""
    if not isinstance(body, dict):
        return
    for name, limit in (("messages", bounds.max_messages), ("tools", bounds.max_tools)):
        count = len(body[name]) if isinstance(body.get(name), list) else 0
        if count > limit:
            raise InvalidRequest(f"The request has {count} {name}, but the limit is {limit}. Send fewer.", param=name)
    characters = _prompt_characters(body.get("prompt"))
    if characters > bounds.max_prompt_characters:
        raise too_long("The prompt", characters, bounds.max_prompt_characters, "prompt")


def too_long(what: str, characters: int, limit: int, param: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what} has {characters} characters (a token id counts as {CHARACTERS_PER_TOKEN}), but the limit is {limit}. "
        "Shorten it.",
        param=param,
    )


def _prompt_characters(prompt: object) -> int:
    """Characters of a prompt in any of its shapes; undefined for invalid prompts."""
    if isinstance(prompt, str):
        return len(prompt)
    if not isinstance(prompt, list):
        return 0
    if prompt and isinstance(prompt[0], int):
        return len(prompt) * CHARACTERS_PER_TOKEN
    texts = sum(len(part) for part in prompt if isinstance(part, str))
    return texts + CHARACTERS_PER_TOKEN * sum(len(part) for part in prompt if isinstance(part, list))
