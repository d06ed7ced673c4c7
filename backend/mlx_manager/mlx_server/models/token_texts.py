"""The text and bytes of single tokens, for logprobs and detokenizing. Runs in the API process."""

import json
import re
from functools import cache
from typing import Any

from mlx_manager.mlx_server.models.tokenization import Tokenizer

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_WORD_START = "\u2581"


class TokenTexts:
    """The name and bytes of each token. A token may be a part of a character and then has no text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._tokenizer = tokenizer
        self._decoders = {step["type"] for step in _decoder_steps(self._backend)}
        self._added: dict[int, Any] = self._backend.get_added_tokens_decoder() if self._backend is not None else {}
        self._known: dict[int, tuple[str, bytes]] = {}

    def __call__(self, token: int) -> tuple[str, bytes]:
        """The token's name and bytes. The name is its text, or for a part of a character e.g. `bytes:\\xf0\\x9f`."""
        if token not in self._known:
            content = self._bytes(token)
            self._known[token] = (_name(content), content)
        return self._known[token]

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            return str(self._added[token].content).encode()
        piece = self._backend.id_to_token(token) if self._backend is not None else None
        if piece is None:  # no fast tokenizer, or an id without a token
            return str(self._tokenizer.decode([token])).encode()
        if "ByteLevel" in self._decoders:
            return _byte_level(piece)
        if "ByteFallback" in self._decoders and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if _WORD_START in piece:
            return str(piece).replace(_WORD_START, " ").encode()
        return str(self._backend.decode([token], skip_special_tokens=False)).encode()


class PlainTexts(dict[int, str | None]):
    """The text of each token whose text does not depend on the tokens before it; None for all other tokens.

    The others are added tokens, parts of characters, and all tokens of unknown decoders.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self._added = self._backend.get_added_tokens_decoder() if self._backend is not None else {}
        steps = _decoder_steps(self._backend)
        self.begin_texts = [step["type"] for step in steps] == ["ByteLevel"]
        """Whether the same holds for the first token of a text."""
        self._writes_spaces = _writes_spaces(steps)

    def __missing__(self, token: int) -> str | None:
        text = self._text(token)
        self[token] = text if text and REPLACEMENT not in text else None
        return self[token]

    def _text(self, token: int) -> str | None:
        piece = self._backend.id_to_token(token) if self._backend is not None else None
        if piece is None or token in self._added:
            return None
        if self.begin_texts:
            return _byte_level(piece).decode(errors="replace")
        return (
            str(piece).replace(_WORD_START, " ") if self._writes_spaces and not _BYTE_TOKEN.fullmatch(piece) else None
        )


def _writes_spaces(steps: list[dict[str, Any]]) -> bool:
    """Whether the decoder only writes spaces, joins bytes, and drops the text's first space."""
    match steps:
        case [{"type": "Metaspace"}]:
            return True
        case [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, *others]:
            return [step["type"] for step in others] in (["Fuse"], ["Fuse", "Strip"]) and not others[-1].get("stop", 0)
    return False


def _name(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """The tokenizer's decoding steps, from its serialized form."""
    if backend is None or backend.decoder is None:
        return []
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
    return steps


def _byte_level(piece: str) -> bytes:
    if all(character in _byte_alphabet() for character in piece):
        return bytes(_byte_alphabet()[character] for character in piece)
    return piece.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes map to themselves, all others to the characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
