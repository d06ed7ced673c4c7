"""Text to token ids and back, in the API process. Knows tokenizers; knows no weights, no requests.

The tokenizer is mlx-lm's `TokenizerWrapper` over a transformers one. `transformers` is slow to import: it is imported
when the first tokenizer is loaded.
"""

import gc
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.utils.descriptors import own_descriptor_limit
from mlx_manager.mlx_server.utils.memory import keep_off_the_gpu

Tokenizer = Any
"""mlx-lm's TokenizerWrapper: an untyped edge."""


def load_tokenizer(
    folder: Path, *, chat_templates: Mapping[str, str] | None = None, trust_remote_code: bool = False
) -> Tokenizer:
    """Blocks for the import and the file: call it in a thread. `chat_templates` stand for those that are found else.

    Code that the folder brings runs with `trust_remote_code` alone.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    _import_mlx_lm()
    from mlx_lm.tokenizer_utils import load

    own: dict[str, object] = {"trust_remote_code": trust_remote_code}
    if chat_templates:
        templates = list(chat_templates.values())
        own["chat_template"] = templates[0] if len(set(templates)) == 1 else dict(chat_templates)
    return load(folder, own)


@cache
def _import_mlx_lm() -> None:
    """The import makes MLX streams, which belong to its thread, and MLX aborts the process when that thread ends first.

    So it is done in a thread that does not end.
    """
    done = threading.Event()

    def import_and_stay() -> None:
        try:
            keep_off_the_gpu()
            with own_descriptor_limit():
                importlib.import_module("mlx_lm.tokenizer_utils")
            gc.collect()
            gc.freeze()  # what is imported stays: a full collection that walked it would hold every stream up
        finally:
            done.set()
        threading.Event().wait()

    threading.Thread(target=import_and_stay, name="mlx-lm-import", daemon=True).start()
    done.wait()


def template_owner(tokenizer: Tokenizer) -> Any:
    """Who renders chat prompts as the model's own template says: the transformers tokenizer inside of mlx-lm's wrapper.

    The wrapper sets `enable_thinking` where the caller did not; where mlx-lm brings the template, it renders itself.
    """
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    if isinstance(tokenizer, TokenizerWrapper) and tokenizer._chat_template is None:
        return tokenizer._tokenizer
    return tokenizer


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    """The ids of `text`; with `add_special_tokens`, those that the model expects around a text, such as its BOS.

    In a thread it does not hold the event loop up: the batch call works without Python's lock, the single one with it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))
    (encoding,) = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
    return list(encoding.ids)


def make_decoder(tokenizer: Tokenizer, skip_special_tokens: bool = True) -> Callable[[list[int]], str]:
    """A function from ids to text that leaves special tokens out, or writes them out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
    return lambda ids: str(backend.decode(ids, skip_special_tokens=skip_special_tokens))


def make_filtering_decoder(tokenizer: Tokenizer, hidden: frozenset[int]) -> Callable[[list[int]], str]:
    """A function from ids to text that leaves the `hidden` ones out, and writes all other special tokens out."""
    decode = make_decoder(tokenizer, skip_special_tokens=False)
    return lambda ids: decode(ids if hidden.isdisjoint(ids) else [token for token in ids if token not in hidden])
