"""Llama 3 and 4: `{"name": ..., "parameters": {...}}`, several separated by ";", or `[name(key=value), ...]`.

A special token before the calls is optional. Without it, and in a code fence, only the name of a known tool
distinguishes a call from other text.
"""

from mlx_manager.mlx_server.parsers.json_call import read_call
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.pythonic import read_call_list
from mlx_manager.mlx_server.parsers.source import Parse, Source

FENCE = "```json"
_BRACKETS = ("{", "[")


class LlamaCalls:
    begins = ("<|python_tag|>", "<|python_start|>", "{", "[", FENCE)
    unmarked = ("{", "[", FENCE)
    separators = (";",)

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        names = tuple(tool.name for tool in tools) if begin in self.unmarked else None
        yield from source.skip_space()
        bracket = begin if begin in _BRACKETS else (yield from source.expect(*_BRACKETS))
        if bracket == "{":
            yield from read_call(source, names)
        else:
            yield from read_call_list(source, names)
        yield from source.skip_space()
        yield from source.accept("```" if begin == FENCE else "<|python_end|>")
