"""Encodes texts and pairs of texts for embedding models and rerankers. Knows no weights and no requests.

The ids follow tokenizer.json, special tokens included. All calls block: use a thread for long texts.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Texts
from pathlib import Path

from tokenizers import Encoding, Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing

from mlx_manager.mlx_server.engine.embedding.recipe import read_json


class TextEncoder:
    def __init__(self, folder: Path, *, lower_case: bool = False) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lower_case = lower_case
        self._end_with(read_json(folder / "tokenizer_config.json"))

    def encode(self, texts: Texts[str], limit: int | None = None) -> list[list[int]]:
        """The ids of each text. `limit` truncates longer texts at the end, but keeps the special tokens."""
        texts = [text.lower() for text in texts] if self._lower_case else texts
        ids = [list(one.ids) for one in self._tokenizer.encode_batch_fast(list(texts))]
        return [
            self._cut(text, limit) if limit is not None and len(one) > limit else one
            for text, one in zip(texts, ids, strict=True)
        ]

    def encode_pairs(
        self, query: str, documents: Texts[str], *, limit: int | None = None, document_limit: int | None = None
    ) -> tuple[list[list[int]], list[int]]:
        """The ids of each pair of query and document, and where the document's segment begins (0 for one segment).

        Truncates documents to `document_limit` tokens, then pairs to `limit`. Truncates the query as well if it takes
        more than half of that.
        """
        pairs = self._tokenizer.encode_batch_fast([(query, document) for document in documents])
        if limit is not None or document_limit is not None:
            pairs = [
                self._cut_pair(query, document, limit, document_limit)
                if document_limit is not None or len(pair.ids) > (limit or len(pair.ids))
                else pair
                for document, pair in zip(documents, pairs, strict=True)
            ]
        return [list(pair.ids) for pair in pairs], [_second_segment(pair.type_ids) for pair in pairs]

    def _end_with(self, config: Mapping[str, object]) -> None:
        """Applies `add_eos_token`, because tokenizer.json may omit that token, as E5-Mistral's does."""
        eos = config.get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        token = self._tokenizer.token_to_id(eos) if isinstance(eos, str) else None
        if config.get("add_eos_token") is not True or token is None or self._tokenizer.encode("a").ids[-1:] == [token]:
            return
        last = TemplateProcessing(single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, token)])
        others = self._tokenizer.post_processor
        self._tokenizer.post_processor = Sequence([others, last]) if others is not None else last

    def _cut(self, text: str, limit: int) -> list[int]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        encoding.truncate(max(0, limit - self._tokenizer.num_special_tokens_to_add(False)))
        return list(self._tokenizer.post_process(encoding).ids)

    def _cut_pair(self, query: str, document: str, limit: int | None, document_limit: int | None) -> Encoding:
        first = self._tokenizer.encode(query, add_special_tokens=False)
        second = self._tokenizer.encode(document, add_special_tokens=False)
        if document_limit is not None:
            second.truncate(document_limit)
        if limit is not None:
            room = max(2, limit - self._tokenizer.num_special_tokens_to_add(True))
            first.truncate(max(room // 2, room - len(second.ids)))
            second.truncate(room - len(first.ids))
        return self._tokenizer.post_process(first, second)


def _second_segment(type_ids: list[int]) -> int:
    return type_ids.index(1) if 1 in type_ids else 0
