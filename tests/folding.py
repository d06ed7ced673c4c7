"""What a client makes of a stream, and the same of a whole response: they must be equal."""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic_core

Json = dict[str, Any]


def of_chat_chunks(chunks: Iterable[Json]) -> Json:
    """Folded as SDKs do: by index of choice, and by index of tool call."""
    choices: dict[int, Json] = {}
    folded: Json = {"usage": None}
    for chunk in chunks:
        folded |= {name: chunk[name] for name in ("id", "created", "model", "system_fingerprint")}
        folded["usage"] = chunk.get("usage") or folded["usage"]
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], _empty_choice())
            assert choice["finish_reason"] is None, "a finished choice goes on"
            _add_delta(choice, part["delta"])
            choice["logprobs"] += (part["logprobs"] or {}).get("content", [])
            choice["finish_reason"] = part["finish_reason"]
    return {**folded, "choices": [choices[index] for index in sorted(choices)]}


def of_chat_response(body: Json) -> Json:
    folded = {name: body[name] for name in ("id", "created", "model", "system_fingerprint", "usage")}
    return {**folded, "choices": [_whole_choice(choice) for choice in body["choices"]]}


def of_completion_chunks(chunks: Iterable[Json]) -> Json:
    choices: dict[int, Json] = {}
    folded: Json = {"usage": None}
    for chunk in chunks:
        folded |= {name: chunk[name] for name in ("id", "created", "model", "system_fingerprint")}
        folded["usage"] = chunk.get("usage") or folded["usage"]
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "logprobs": {}, "finish_reason": None})
            assert choice["finish_reason"] is None, "a finished choice goes on"
            choice["text"] += part["text"]
            for column, values in (part["logprobs"] or {}).items():
                choice["logprobs"].setdefault(column, []).extend(values)
            choice["finish_reason"] = part["finish_reason"]
    return {**folded, "choices": [choices[index] for index in sorted(choices)]}


def of_completion_response(body: Json) -> Json:
    folded = {name: body[name] for name in ("id", "created", "model", "system_fingerprint", "usage")}
    columns = [
        {name: values for name, values in (choice["logprobs"] or {}).items() if values} for choice in body["choices"]
    ]
    choices = [
        {"text": choice["text"], "logprobs": logprobs, "finish_reason": choice["finish_reason"]}
        for choice, logprobs in zip(body["choices"], columns, strict=True)
    ]
    return {**folded, "choices": choices}


def of_message_events(stream: str) -> Json:
    """Folded as Anthropic's SDKs do; the order of events is checked on the way."""
    message: Json = {}
    arguments = ""
    open_block: Json | None = None
    for kind, event in message_events(stream):
        assert message.get("stop_reason") is None or kind == "message_stop", "something follows the message's end"
        match kind:
            case "message_start":
                assert not message
                message = event["message"]
            case "content_block_start":
                assert open_block is None, "two blocks are open"
                assert event["index"] == len(message["content"])
                open_block, arguments = event["content_block"], ""
                message["content"].append(open_block)
            case "content_block_delta":
                assert open_block is not None
                assert event["index"] == len(message["content"]) - 1
                assert not open_block.get("signature"), "thoughts go on behind their signature"
                arguments += _add_part(open_block, event["delta"])
            case "content_block_stop":
                assert open_block is not None
                if open_block["type"] == "tool_use":
                    open_block["input"] = pydantic_core.from_json(arguments or "{}", allow_partial=True)
                open_block = None
            case "message_delta":
                assert open_block is None
                message |= event["delta"]
                message["usage"] |= event["usage"]
            case other:
                assert other == "message_stop"
    assert kind == "message_stop"
    return message


def message_events(stream: str) -> Iterator[tuple[str, Json]]:
    """All but pings."""
    return ((kind, event) for kind, event in named_events(stream) if kind != "ping")


def named_events(stream: str) -> Iterator[tuple[str, Json]]:
    """Each event with its type, which stands in both of its lines."""
    for frame in stream.removesuffix("\n\n").split("\n\n"):
        first, _, second = frame.partition("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        yield event["type"], event


def of_response_events(stream: str) -> Json:
    """The last event's response, once its items were checked to be what the events before it add up to."""
    items: list[Json] = []
    is_open = False
    pieces: dict[str, str] = {}
    events = list(named_events(stream))
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert [kind for kind, _ in events[:2]] == ["response.created", "response.in_progress"]
    for kind, event in events[2:-1]:
        name = kind.removeprefix("response.")
        if name == "in_progress":
            continue
        if name == "output_item.added":
            assert not is_open, "two items are open"
            items.append(event["item"])
            is_open, pieces = True, {}
        assert is_open
        assert event["output_index"] == len(items) - 1
        if name == "output_item.done":
            assert event["item"]["id"] == items[-1]["id"]
            assert _texts_of(event["item"]) == pieces
            items[-1], is_open = event["item"], False
        elif name != "output_item.added":
            assert event["item_id"] == items[-1]["id"]
            _add_response_part(pieces, name, event)
    kind, last = events[-1]
    assert kind in ("response.completed", "response.incomplete", "response.failed")
    assert not is_open or kind == "response.failed"
    if is_open:
        assert last["response"]["output"][-1]["status"] == "incomplete"
        assert _texts_of(last["response"]["output"][-1]) == pieces
        items[-1] = last["response"]["output"][-1]
    assert last["response"]["output"] == items
    whole: Json = last["response"]
    return whole


def _add_response_part(pieces: dict[str, str], name: str, event: Json) -> None:
    what, _, stage = name.rpartition(".")
    if what in ("content_part", "reasoning_summary_part"):
        key = event["part"]["type"]
        assert (key in pieces) == (stage == "done"), "a part begins once, before its deltas"
        text = event["part"].get("text", event["part"].get("refusal"))
        assert text == pieces.setdefault(key, "")
        return
    key = {"reasoning_summary_text": "summary_text"}.get(what, what)
    if stage == "delta":
        pieces[key] = pieces.get(key, "") + event["delta"]
    else:
        (text,) = (event[field] for field in ("text", "refusal", "arguments", "input") if field in event)
        pieces.setdefault(key, text if what == "custom_tool_call_input" else "")
        assert text.startswith(pieces[key])
        pieces[key] = text


def _texts_of(item: Json) -> dict[str, str]:
    match item["type"]:
        case "function_call":
            return {"function_call_arguments": item["arguments"]}
        case "custom_tool_call":
            return {"custom_tool_call_input": item["input"]}
        case _:
            parts = [*item.get("content", []), *item.get("summary", [])]
            return {part["type"]: part.get("text", part.get("refusal")) for part in parts}


def _add_part(block: Json, delta: Json) -> str:
    """What the delta adds to the arguments of a call."""
    (name,) = delta.keys() - {"type"}
    assert delta["type"] == ("input_json_delta" if name == "partial_json" else f"{name}_delta")
    if name == "partial_json":
        return str(delta[name])
    block[name] += delta[name]
    return ""


def same(one: Any, other: Any) -> bool:
    """Equal but for the last digits of logprobs, which depend on who else is in the batch."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-3)
    return bool(one == other)


def _empty_choice() -> Json:
    return {
        "role": None,
        "content": "",
        "reasoning_content": "",
        "tool_calls": [],
        "logprobs": [],
        "finish_reason": None,
    }


def _add_delta(choice: Json, delta: Json) -> None:
    choice["role"] = delta.get("role", choice["role"])
    choice["content"] += delta.get("content") or ""
    assert delta.get("reasoning") == delta.get("reasoning_content")
    choice["reasoning_content"] += delta.get("reasoning_content") or ""
    for part in delta.get("tool_calls", []):
        if part["index"] == len(choice["tool_calls"]):
            choice["tool_calls"].append({"id": part["id"], "name": part["function"]["name"], "arguments": ""})
        choice["tool_calls"][part["index"]]["arguments"] += part["function"]["arguments"]


def _whole_choice(choice: Json) -> Json:
    message = choice["message"]
    calls = [call["function"] | {"id": call["id"]} for call in message.get("tool_calls", [])]
    return {
        "role": message["role"],
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": calls,
        "logprobs": (choice["logprobs"] or {}).get("content", []),
        "finish_reason": choice["finish_reason"],
    }
