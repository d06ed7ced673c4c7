"""gpt-oss (harmony): an output is a sequence of messages with a channel and an optional recipient in each header.

Reasoning is `<|channel|>analysis<|message|>...<|end|>`, and a call is
`<|start|>assistant<|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>`.
"""

import re

from mlx_manager.mlx_server.parsers.json_call import copy_arguments
from mlx_manager.mlx_server.parsers.pieces import Reasoning, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from mlx_manager.mlx_server.parsers.source import Malformed, Parse, Source

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
HARMONY_TOKENS = frozenset({START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS})

_HEADER_BEGINS = (START, CHANNEL, MESSAGE)
_RECIPIENT = re.compile(r"to=functions\.([-.\w]+)")
_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis")


def parse_harmony(source: Source) -> Parse[None]:
    """The prompt ends with `<|start|>assistant`, so the output begins inside the first message header."""
    source.mark()
    begin = yield from source.accept(*_HEADER_BEGINS, " to=", "to=")
    while True:
        if begin is None:
            begin = yield from source.until(_HEADER_BEGINS, source.piece_sink(Text), trim=True)
        if begin is None:
            return
        try:
            begin = yield from _read_message(source, begin)
        except Malformed as reason:
            source.give_back(reason, looked_like_a_call=True)
            begin = None


def _read_message(source: Source, begin: str) -> Parse[str | None]:
    """Returns the beginning of the next header if the message has no end marker, else None."""
    header = begin if begin == MESSAGE else begin + (yield from source.text_until(MESSAGE))
    if recipient := _RECIPIENT.search(header):
        yield from _read_call(source, recipient[1])
        return None
    source.forget()
    source.in_reasoning = _ANALYSIS.search(header) is not None
    kind = Reasoning if source.in_reasoning else Text
    end = yield from source.until((*ENDS, START, CHANNEL), source.piece_sink(kind))
    source.in_reasoning = False
    source.mark()
    return end if end in _HEADER_BEGINS else None


def _read_call(source: Source, name: str) -> Parse[None]:
    yield from source.skip_space()
    if (yield from source.peek()) not in ("{", "<", ""):
        raise Malformed("the arguments are not an object")
    source.emit(ToolCallStart(name))
    if (yield from source.peek()) == "{":
        yield from copy_arguments(source, lambda text: source.emit(ToolCallArguments(text)))
    else:
        source.emit(ToolCallArguments("{}"))
    source.emit(ToolCallEnd())
    source.mark()
    yield from source.skip_space()
    yield from source.accept(*ENDS)
    source.forget()
