"""The process that converts one tokenizer with transformers and ends.

Run as `python -m mlx_manager.mlx_server.models.converter`. The request is JSON with the model's `folder`, the output
folder `to`, and `trust_remote_code`. The reply is empty, or says why there is no tokenizer.json.

The converted tokenizer must behave like the original: Python tokenizers are compared on `SAMPLES`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.isolation.answering import answer_questions

CPU_SECONDS = 300.0
MEMORY_BYTES = 2**35
"""Limit on address space, of which libraries such as PyTorch map far more than they use."""
MAX_REASON_CHARACTERS = 500

SAMPLES = (
    "",
    " ",
    "Hello world",
    " Hello  world   again ",
    "\n\n  def f(x):\n\treturn x ** 2  # it's\r\n",
    "The year 2024 had 366 days; 3.14159 and 1,000,000 are numbers.",
    "I'm, you're, he'd, WE'LL, don't",
    "Grüße, naïve café, e\u0301, ﬁ, Ⅷ, ½",
    "你好,世界!今天是2024年。",
    "こんにちは世界、カタカナ",
    "안녕하세요 세계",
    "שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "😀👩‍👩‍👧🇩🇪👍🏽 \U0010ffff",
    "<s>[INST] <<SYS>> </s> <|im_start|>user<|im_end|>",
    'https://example.org/a_b?c=d&e=%20#f {"key": [1, null]}',
    "ALLCAPS camelCase snake_case kebab-case ... !!! ???",
    "\u200b\ufeff\u00a0\u3000 tabs\t\tand\x00zero",
)


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    answer_questions(_answer, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES)


def _answer(question: bytes) -> bytes:
    asked = json.loads(question)
    try:
        _convert(Path(asked["folder"]), Path(asked["to"]), asked["trust_remote_code"])
    except MemoryError:
        raise
    except Exception as exc:  # transformers and the model's own code may raise anything
        reason = str(exc).strip().partition("\n")[0]
        return f"{type(exc).__name__}: {reason}"[:MAX_REASON_CHARACTERS].encode("utf-8", "replace")
    return b""


def _convert(folder: Path, to: Path, trust_remote_code: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    backend = _backend(tokenizer, folder)
    config = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if name in ("clean_up_tokenization_spaces", "split_special_tokens", "chat_template_type", "tool_parser_type")
    }
    config |= tokenizer.special_tokens_map | {"extra_special_tokens": _extra(tokenizer), "added_tokens_decoder": {}}
    written = Path(tempfile.mkdtemp(dir=to.parent))
    backend.save(str(written / "tokenizer.json"))
    (written / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    shutil.rmtree(to, ignore_errors=True)
    written.rename(to)


def _extra(tokenizer: Any) -> list[str]:
    return [str(token) for token in getattr(tokenizer, "extra_special_tokens", [])]


def _backend(tokenizer: Any, folder: Path) -> Any:
    """A `tokenizers.Tokenizer` equivalent to the transformers tokenizer."""
    is_transformers_own = type(tokenizer).__module__.startswith("transformers.")
    if is_transformers_own and hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer.backend_tokenizer
    for candidate in _candidates(tokenizer, folder):
        try:
            backend = candidate()
            if _is_equivalent(backend, tokenizer):
                return backend
        except (AttributeError, KeyError, OSError, TypeError, ValueError):
            continue
    raise ValueError(f"{type(tokenizer).__name__} is Python code without an equivalent tokenizer.json")


def _candidates(tokenizer: Any, folder: Path) -> Iterator[Callable[[], Any]]:
    from transformers import PreTrainedTokenizerFast

    yield lambda: tokenizer.backend_tokenizer
    for value in vars(tokenizer).values():
        if hasattr(value, "_mergeable_ranks"):  # tiktoken's Encoding
            yield partial(_from_tiktoken, value, tokenizer)
    yield lambda: PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer


def _from_tiktoken(encoding: Any, tokenizer: Any) -> Any:
    from tokenizers import AddedToken
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):  # type: ignore[misc]
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            ranks: dict[bytes, int] = encoding._mergeable_ranks
            return ranks

    specials = sorted(encoding._special_tokens, key=encoding._special_tokens.get)
    backend = Converter(pattern=encoding._pat_str, extra_special_tokens=specials).converted()
    backend.add_tokens(
        [AddedToken(str(token), special=True, normalized=False) for token in tokenizer.all_special_tokens]
    )
    return backend


def _is_equivalent(backend: Any, tokenizer: Any) -> bool:
    texts = [*SAMPLES, *(f"a{token}b" for token in tokenizer.all_special_tokens), "".join(SAMPLES)]
    return all(_same_ids(backend, tokenizer, text) for text in texts)


def _same_ids(backend: Any, tokenizer: Any, text: str) -> bool:
    for adds in (False, True):
        ids = tokenizer.encode(text, add_special_tokens=adds)
        if backend.encode(text, add_special_tokens=adds).ids != list(ids):
            return False
    return bool(backend.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids, skip_special_tokens=False))


if __name__ == "__main__":
    main()
