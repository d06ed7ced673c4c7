"""The tokenizer of the API process, from tokenizer.json and its config files. Knows no weights and no requests.

tokenizer.json defines how text is split, as in transformers 4 and TGI. This module ignores the classes of
transformers 5 that build their own pipeline instead.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from mlx_manager.mlx_server.models.chat_templates import DEFAULT, read_chat_templates
from mlx_manager.mlx_server.models.tokenizer_files import NAMES, TokenizerFiles, read_tokenizer_files
from mlx_manager.mlx_server.templates.environment import render as render_here

Render = Callable[..., str]
"""`environment.render` or `TemplateRenderer.render`, which have the same arguments."""
Message = dict[str, Any]
Text = str | tuple[str, str]
"""One text, or a pair of texts for an encoder."""

TOKENIZER_FILE = "tokenizer.json"
_TOOL_USE = "tool_use"
_UNSPACED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def load_tokenizer(
    folder: Path, *, chat_templates: Mapping[str, str] | None = None, render: Render = render_here
) -> "Tokenizer":
    """Reads files: call it in a thread. `chat_templates` default to those of the folder.

    `render` renders templates. Untrusted templates need `TemplateRenderer.render`.
    Raises OSError for a folder without tokenizer.json, and ValueError for an unreadable one.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {TOKENIZER_FILE}")
    try:
        backend = Backend.from_file(str(file))
    except Exception as exc:  # the library raises plain Exception
        raise ValueError(f"{TOKENIZER_FILE}: {exc}") from exc
    templates = read_chat_templates(folder) if chat_templates is None else chat_templates
    return Tokenizer(backend, read_tokenizer_files(folder), templates, render)


class Tokenizer:
    """A model's tokenizer, with those members of transformers' tokenizers that chat templates and adapters use.

    Has attributes bos_token and bos_token_id, and likewise for eos, unk, sep, pad, cls, mask and the model's own names.
    An attribute is None where the tokenizer has no such token. Thread-safe.
    """

    def __init__(
        self,
        backend: Any,
        files: TokenizerFiles,
        chat_templates: Mapping[str, str] | None = None,
        render: Render = render_here,
    ) -> None:
        """`backend` is a `tokenizers.Tokenizer`, which this modifies."""
        self.backend_tokenizer = backend
        self.init_kwargs = dict(files.config)
        self.chat_template: str | dict[str, str] | None = _as_in_transformers(chat_templates or {})
        python_template = files.config.get("chat_template_type")
        self.python_template: str | None = python_template if isinstance(python_template, str) else None
        self._render = render
        self._special = _prepare(backend, files)
        self._extra = [str(token) for token in files.extra]
        self.eos_token_ids = {self.eos_token_id} - {None}

    def __getattr__(self, name: str) -> Any:
        """Special tokens and their ids, such as `eos_token` and `eos_token_id`."""
        special = self.__dict__.get("_special", {})
        text = name.removesuffix("_id")
        if text not in special and text not in NAMES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        token = special.get(text)
        return token if text == name or token is None else self.convert_tokens_to_ids(token)

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    # text to ids and back

    def encode(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the model's special tokens, such as BOS, if `add_special_tokens` is set.

        Releases Python's lock, so a call in a thread does not block the event loop.
        """
        (ids,) = self.encode_batch([text if pair is None else (text, pair)], add_special_tokens=add_special_tokens)
        return ids

    def encode_batch(self, texts: Sequence[Text], *, add_special_tokens: bool = True) -> list[list[int]]:
        return [encoding.ids for encoding in self.encodings(texts, add_special_tokens=add_special_tokens)]

    def encodings(self, texts: Sequence[Text], *, add_special_tokens: bool = True) -> list[Any]:
        """A `tokenizers.Encoding` for each text, with `ids`, `type_ids`, `tokens` and `truncate(length)`.

        The library's batch call releases Python's lock; its call for a single text does not.
        """
        found: list[Any] = self.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return found

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return int(self.backend_tokenizer.num_special_tokens_to_add(pair))

    def __call__(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = self.encode(text, pair, add_special_tokens=add_special_tokens)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        tokens: list[str] = self.convert_ids_to_tokens(self.encode(text, add_special_tokens=add_special_tokens))
        return tokens

    def decode(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        listed = [ids] if isinstance(ids, int) else list(ids)
        text = str(self.backend_tokenizer.decode(listed, skip_special_tokens=skip_special_tokens))
        if not self.init_kwargs.get("clean_up_tokenization_spaces") or self._is_bpe:
            return text
        for spaced in _UNSPACED:
            text = text.replace(spaced, spaced.strip())
        return text

    def batch_decode(self, sequences: Iterable[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    @property
    def _is_bpe(self) -> bool:
        """transformers does not clean up the text of BPE tokenizers, which keep the original spaces."""
        return type(self.backend_tokenizer.model).__name__ == "BPE"

    # the vocabulary

    @property
    def vocab_size(self) -> int:
        """The size without added tokens."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Each `tokenizers.AddedToken` by its id."""
        found: dict[int, Any] = self.backend_tokenizer.get_added_tokens_decoder()
        return found

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: number for number, token in sorted(self.added_tokens_decoder.items())}

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return dict(self._special)

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self._special.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int | None]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or a list of ids. An unknown token has the id of `unk_token`, or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self.backend_tokenizer.token_to_id(tokens)
        if number is None and tokens != self._special.get("unk_token"):
            return self.unk_token_id
        return number

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(number) for number in ids]

    def add_tokens(self, tokens: str | Sequence[Any], special_tokens: bool = False) -> int:
        """Adds tokens and returns the number of new ones."""
        listed = [tokens] if isinstance(tokens, str) else list(tokens)
        add = self.backend_tokenizer.add_special_tokens if special_tokens else self.backend_tokenizer.add_tokens
        return int(add(listed))

    # chat templates

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None or self.python_template is not None

    def get_chat_template(self, chat_template: str | None = None, tools: list[Any] | None = None) -> str:
        """The Jinja source. `chat_template` is a template or the name of one."""
        known = self.chat_template
        if not isinstance(known, dict):
            found = chat_template if chat_template is not None else known
            if found is None:
                raise ValueError("The tokenizer has no chat template. Pass chat_template.")
            return found
        if chat_template is not None:
            return known.get(chat_template, chat_template)
        if tools is not None and _TOOL_USE in known:
            return known[_TOOL_USE]
        if DEFAULT not in known:
            raise ValueError(f"The tokenizer has no default chat template. Pass chat_template, one of {sorted(known)}.")
        return known[DEFAULT]

    def apply_chat_template(
        self,
        conversation: list[Message],
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """The prompt of one conversation: its ids, the dict of `__call__` with `return_dict`, or its text."""
        arguments: dict[str, Any] = {
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if self.python_template is not None and chat_template is None:
            template, arguments["python_template"] = "", self.python_template
        else:
            template, variables = self.get_chat_template(chat_template, tools), {**self._special, **variables}
        text = self._render(template, conversation, **arguments, variables=variables)
        if not tokenize:
            return text
        encoding = self(text, add_special_tokens=False)
        return encoding if return_dict else encoding["input_ids"]


def make_decoder(tokenizer: Tokenizer, skip_special_tokens: bool = True) -> Callable[[list[int]], str]:
    """A function from ids to text that omits or includes special tokens."""
    decode = tokenizer.backend_tokenizer.decode
    return lambda ids: str(decode(ids, skip_special_tokens=skip_special_tokens))


def make_filtering_decoder(tokenizer: Tokenizer, hidden: frozenset[int]) -> Callable[[list[int]], str]:
    """A function from ids to text that omits the `hidden` ids and includes all other special tokens."""
    decode = make_decoder(tokenizer, skip_special_tokens=False)
    return lambda ids: decode(ids if hidden.isdisjoint(ids) else [token for token in ids if token not in hidden])


def _as_in_transformers(templates: Mapping[str, str]) -> str | dict[str, str] | None:
    """None, the only template, or all templates by name."""
    texts = list(templates.values())
    return dict(templates) if len(set(texts)) > 1 else texts[0] if texts else None


def _prepare(backend: Any, files: TokenizerFiles) -> dict[str, str]:
    """Adds tokens that tokenizer.json lacks, and returns the special tokens by name."""
    pad = (backend.padding or {}).get("pad_token")
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(files.config.get("split_special_tokens", False))
    defaults = {name: text for name, text in files.defaults.items() if backend.token_to_id(text) is not None}
    special = {**defaults, **({"pad_token": pad} if pad is not None else {}), **files.special}
    special = {name: special[name] for name in dict.fromkeys([*NAMES, *special]) if name in special}
    _add_tokens(backend, files, special)
    _follow_config(backend, files.config)
    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return {name: str(token) for name, token in special.items()}


def _add_tokens(backend: Any, files: TokenizerFiles, special: Mapping[str, Any]) -> None:
    own = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    known = own.keys() | {token.content for token in files.added.values()}
    names = {str(token) for token in special.values()}
    missing = [token for token in (*special.values(), *files.extra) if str(token) not in known]
    tokens = [*files.added.values(), *(AddedToken(t, special=True) if isinstance(t, str) else t for t in missing)]
    if "added_tokens_decoder" not in files.config:
        tokens = [token for token in own.values() if token.content in names and not token.special] + tokens
    for token in tokens:
        token.special = token.special or token.content in names
    backend.add_tokens(tokens)


def _follow_config(backend: Any, config: Mapping[str, Any]) -> None:
    """Applies the settings of tokenizer_config.json that change how BERT and GPT-2 tokenizers split text."""
    normalizer = backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        for name, attribute in _BERT_OPTIONS.items():
            if name in config:
                setattr(normalizer, attribute, config[name])
        backend.normalizer = normalizer
    splitter, prefix = backend.pre_tokenizer, config.get("add_prefix_space")
    if isinstance(splitter, pre_tokenizers.ByteLevel) and isinstance(prefix, bool):
        splitter.add_prefix_space = prefix
        backend.pre_tokenizer = splitter


_BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""The normalizer's attribute for each setting of tokenizer_config.json."""
