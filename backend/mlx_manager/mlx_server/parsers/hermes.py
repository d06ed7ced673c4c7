"""Qwen 2.5 and 3, Hermes and similar models: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from mlx_manager.mlx_server.parsers.json_call import read_call_in_tags
from mlx_manager.mlx_server.parsers.output import Tools
from mlx_manager.mlx_server.parsers.source import Parse, Source


class HermesCalls:
    begins = ("<tool_call>",)
    unmarked: tuple[str, ...] = ()
    separators: tuple[str, ...] = ()

    def read(self, source: Source, begin: str, tools: Tools) -> Parse[None]:
        yield from source.skip_space()
        yield from read_call_in_tags(source, "</tool_call>")
