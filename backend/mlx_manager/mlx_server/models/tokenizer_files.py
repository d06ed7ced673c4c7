"""Reads a tokenizer's config files: its special tokens, and the tokens that tokenizer.json lacks.

Follows the rules of transformers' `PreTrainedTokenizerFast`; tests compare both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mlx_manager.mlx_server.models.defaults import read_json

CONFIG_FILE = "tokenizer_config.json"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"
_ADDED_TOKENS_FILE = "added_tokens.json"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

_BERT = {name: f"[{name.removesuffix('_token').upper()}]" for name in NAMES[2:]}
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_ROBERTA = {**_LLAMA, "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>"}
_GPT2 = dict.fromkeys(NAMES[:3], "<|endoftext|>")
_GEMMA = {name: f"<{name.removesuffix('_token')}>" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
_CLASS_TOKENS: Mapping[str, Mapping[str, str]] = {
    "bert": _BERT,
    "distilbert": _BERT,
    "gemma": _GEMMA,
    "gpt2": _GPT2,
    "gptneox": _GPT2,
    "llama": _LLAMA,
    "qwen2": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    "roberta": _ROBERTA,
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "xlmroberta": _ROBERTA,
}
"""Default special tokens of transformers' classes, for files that name none, such as those of gpt2 and bert-base."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """`added` has tokens by id, `special` has special tokens by name, and `extra` has special tokens without a name.

    A token is a `tokenizers.AddedToken`. `defaults` has texts of special tokens, which apply if the vocabulary
    contains them.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[int, Any] = field(default_factory=dict)
    special: Mapping[str, Any] = field(default_factory=dict)
    extra: tuple[Any, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Raises ValueError for a malformed token."""
    config: dict[str, Any] = dict(read_json(folder / CONFIG_FILE))
    added = _tokens_by_id(config.get("added_tokens_decoder"))
    legacy = {} if "added_tokens_decoder" in config else read_json(folder / _SPECIAL_TOKENS_FILE)
    given = config | {name: value for name, value in legacy.items() if name != "extra_special_tokens"}
    extra = _extra_tokens(config, legacy)
    named = {name: value for name, value in given.items() if _names_a_token(name, value)}
    named |= extra if isinstance(extra, dict) else {}
    listed = tuple(_token(value) for value in extra) if isinstance(extra, list) else ()
    by_text = {str(token): token for token in added.values()}
    special = {name: by_text.get(_text(value), _token(value)) for name, value in named.items()}
    if not added:
        added = _legacy_added_tokens(folder, {*map(str, special.values()), *map(str, listed)})
    defaults = {name: text for name, text in _class_defaults(folder, config).items() if name not in given}
    return TokenizerFiles(config, added, special, listed, defaults)


def _names_a_token(name: str, value: object) -> bool:
    """Whether the entry is a token. Other names count only with a text: "add_bos_token" is a boolean."""
    if name in NAMES:
        return value is not None
    return name.endswith("_token") and isinstance(value, str)


def _extra_tokens(config: Mapping[str, Any], legacy: Mapping[str, Any]) -> list[Any] | dict[str, Any]:
    """Special tokens without a name, or with the model's own names."""
    config_extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    found = legacy.get("extra_special_tokens") or legacy.get("additional_special_tokens") or config_extra
    return found if isinstance(found, list | dict) else []


def _tokens_by_id(entry: object) -> dict[int, Any]:
    items = sorted((int(number), value) for number, value in (entry if isinstance(entry, dict) else {}).items())
    return {number: _token(value) for number, value in items}


def _legacy_added_tokens(folder: Path, special: set[str]) -> dict[int, Any]:
    def tokens() -> Iterator[tuple[int, Any]]:
        for text, number in read_json(folder / _ADDED_TOKENS_FILE).items():
            if isinstance(number, int):
                yield number, AddedToken(text, normalized=text not in special, special=text in special)

    return dict(sorted(tokens(), key=lambda item: item[0]))


def _token(value: Any) -> Any:
    """Converts a text, which is a special token, or an object with text and flags."""
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in _TOKEN_FLAGS if isinstance(value.get(name), bool)}
        return AddedToken(value["content"], **flags)
    raise ValueError(f"{CONFIG_FILE} has {value!r} where a token is expected")


def _text(value: Any) -> str:
    return str(value["content"] if isinstance(value, dict) and "content" in value else value)


def _class_defaults(folder: Path, config: Mapping[str, Any]) -> Mapping[str, str]:
    named = config.get("tokenizer_class")
    if not isinstance(named, str):
        named = str(read_json(folder / "config.json").get("model_type", ""))
    name = named.removesuffix("Fast").removesuffix("Tokenizer").lower().replace("_", "").replace("-", "")
    return _CLASS_TOKENS.get(name, {})
