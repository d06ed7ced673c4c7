"""Custom tools as text of ordinary turns."""

import json

from mlx_manager.mlx_server.services.tool_prompt import with_custom_tools_as_text
from mlx_manager.mlx_server.types import CUSTOM_PARAMETERS, ChatTurn, Grammar, ToolCall, ToolDefinition

PATCH = ToolDefinition(
    "patch", "Change files", CUSTOM_PARAMETERS, 0, custom=True, grammar=Grammar("lark", "start: A\n", "tools")
)
CALL = ToolCall("c1", "patch", json.dumps({"input": 'a\n"b"'}))
LOOK = ToolCall("c2", "look", "{}")
WRITTEN = '<custom_tool_call name="patch">\na\n"b"\n</custom_tool_call>'


def test_the_system_message_describes_the_tools_and_their_layout() -> None:
    first, question = with_custom_tools_as_text([ChatTurn("system", "Be brief."), ChatTurn("user", "Hi")], [PATCH])
    assert first.content is not None
    assert first.content.startswith("Be brief.\n\n# Custom tools")
    assert '<custom_tool_call name="the name of the tool">\nthe text\n</custom_tool_call>' in first.content
    assert first.content.endswith("## patch\nChange files\nThe text follows this lark grammar:\nstart: A")
    assert question == ChatTurn("user", "Hi")


def test_calls_are_text_of_the_assistant_and_their_results_text_of_the_user() -> None:
    turns = [ChatTurn("assistant", "So:", tool_calls=(CALL,)), ChatTurn("tool", "ok", tool_call_id="c1")]
    _, said, result = with_custom_tools_as_text(turns, [PATCH])
    assert said == ChatTurn("assistant", f"So:\n{WRITTEN}")
    assert result == ChatTurn("user", "<tool_response>\nok\n</tool_response>")


def test_calls_of_functions_and_their_results_stay_as_they_are() -> None:
    turns = [
        ChatTurn("assistant", None, tool_calls=(LOOK, CALL)),
        ChatTurn("tool", "seen", tool_call_id="c2"),
        ChatTurn("tool", "ok", tool_call_id="c1"),
    ]
    _, said, *results = with_custom_tools_as_text(turns, [PATCH])
    assert said == ChatTurn("assistant", WRITTEN, tool_calls=(LOOK,))
    assert results == [turns[1], ChatTurn("user", "<tool_response>\nok\n</tool_response>")]
