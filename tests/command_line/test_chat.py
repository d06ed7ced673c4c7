"""The chat: in a pipe, and in a real terminal with its keys."""

import json
import re
from pathlib import Path

import psutil

from mlx_manager.command_line.chat import printable
from tests.command_line.commands import Terminal, environment, in_terminal, mlx_manager
from tests.command_line.stand_in import stand_in
from tests.running_server import HANG_SECONDS, RunningServer

CTRL_C, CTRL_D = "\x03", "\x04"
PROMPT = "> "
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def say(terminal: Terminal, line: str) -> str:
    """What is shown after the line, up to the next prompt, without colours."""
    terminal.type(f"{line}\n")
    terminal.wait_for(f"{line}\r\n")
    shown = ESCAPES.sub("", terminal.wait_for(PROMPT))
    return shown.removesuffix(PROMPT).strip()


def test_a_pipe_gets_the_answer_and_nothing_else(server: RunningServer) -> None:
    ran = mlx_manager("chat", "demo", server=server, stdin="Count to 5\n")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1, 2, 3, 4, 5\n", "")


def test_a_pipe_without_a_message_is_told_so() -> None:
    ran = mlx_manager("chat", "demo", stdin="\n")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("Error: The input is empty")


def test_a_given_server_that_lacks_the_model_says_what_it_has(server: RunningServer) -> None:
    ran = mlx_manager("chat", "dem", "--base-url", f"{server.url}/v1", stdin="Hello")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "Did you mean: demo" in ran.stderr


def test_without_a_server_the_chat_starts_one_and_ends_it() -> None:
    with in_terminal("chat", "demo", environment=environment()) as terminal:
        assert "Starting one for this chat" in terminal.wait_for("/help lists the commands.")
        terminal.wait_for(PROMPT)
        started = psutil.Process(terminal.process.pid).children(recursive=True)
        assert len(started) == 3  # the server, the model's worker, and what renders its template
        assert say(terminal, "Count to 5") == "1, 2, 3, 4, 5"
        terminal.type(CTRL_D)
    assert terminal.process.returncode == 0
    psutil.wait_procs(started, timeout=HANG_SECONDS)
    assert [process for process in started if process.is_running()] == []


def test_a_closed_terminal_ends_the_server_that_the_chat_started() -> None:
    with in_terminal("chat", "demo", environment=environment()) as terminal:
        terminal.wait_for(PROMPT)
        started = psutil.Process(terminal.process.pid).children(recursive=True)
        terminal.close()
    _, alive = psutil.wait_procs(started, timeout=HANG_SECONDS)
    assert alive == []


def test_a_model_that_cannot_be_loaded_is_told_and_no_prompt_comes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = mlx_manager("chat", tmp_path / "empty", stdin="Hello")
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: ")
    assert "empty" in ran.stderr


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: RunningServer) -> None:
    with in_terminal("chat", "babbler", environment=environment(server)) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("Go on\n")
        terminal.wait_for("Go on\r\n")
        terminal.wait_for(" ")  # it babbles
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for(PROMPT)
        terminal.type(f"{CTRL_C}\n")  # at the prompt it ends the line
        terminal.wait_for(PROMPT)
        assert "/reset" in say(terminal, "/help")
        terminal.type("/quit\n")
    assert terminal.process.returncode == 0


def test_what_was_answered_before_ctrl_c_is_remembered(server: RunningServer, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with in_terminal("chat", "babbler", environment=environment(server)) as terminal:
        terminal.wait_for(PROMPT)
        terminal.type("Go on\n")
        terminal.wait_for("Go on\r\n")
        terminal.wait_for(" ")
        terminal.type(CTRL_C)
        terminal.wait_for("(stopped)")
        terminal.wait_for(PROMPT)
        say(terminal, f"/save {saved}")
        terminal.type("/quit\n")
    assert [message["role"] for message in json.loads(saved.read_text())["messages"]] == ["user", "assistant"]


def test_system_and_reset_change_what_the_model_is_sent(server: RunningServer, tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    with in_terminal("chat", "demo", environment=environment(server)) as terminal:
        terminal.wait_for(PROMPT)
        say(terminal, "/system You are a pirate.")
        assert "Arr" in say(terminal, "Hello")
        say(terminal, f"/save {before}")
        say(terminal, "/reset")
        say(terminal, "/system")
        say(terminal, "Count to 3")
        say(terminal, f"/save {after}")
        terminal.type("/quit\n")
    first, second = json.loads(before.read_text()), json.loads(after.read_text())
    assert [message["content"] for message in first["messages"][:2]] == ["You are a pirate.", "Hello"]
    assert second == {
        "model": "demo",
        "messages": [{"role": "user", "content": "Count to 3"}, {"role": "assistant", "content": "1, 2, 3"}],
    }
    assert server.post("/v1/chat/completions", second).status_code == 200


def test_save_keeps_files_of_others_and_says_what_it_cannot_write(server: RunningServer, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text("mine")
    with in_terminal("chat", "demo", environment=environment(server)) as terminal:
        terminal.wait_for(PROMPT)
        assert "already exists" in say(terminal, f"/save {other}")
        assert "cannot be written" in say(terminal, "/save /no/such/folder/chat.json")
        assert "/save FILE" in say(terminal, "/save")
        assert "Unknown command /sve" in say(terminal, "/sve x")
        terminal.type("/quit\n")
    assert other.read_text() == "mine"


def stream(*events: dict[str, object]) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def delta(**fields: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


THOUGHTFUL = stream(delta(reasoning_content="Let me see."), delta(content="Yes."))
BROKEN = stream(delta(content="Half an"), {"error": {"message": "The worker died."}})


def test_thoughts_are_dim_in_a_terminal_and_absent_from_a_pipe() -> None:
    with stand_in({"/v1/chat/completions": THOUGHTFUL}) as url:
        assert mlx_manager("chat", "m", "--base-url", url, stdin="Hello").stdout == "Yes.\n"
        with in_terminal("chat", "m", "--base-url", url, environment=environment()) as terminal:
            terminal.wait_for(PROMPT)
            terminal.type("Hello\n")
            terminal.wait_for("\x1b[2mLet me see.\x1b[0m\r\n\r\nYes.")
            terminal.wait_for(PROMPT)
            terminal.type(CTRL_D)


def test_an_answer_that_breaks_off_is_told_and_the_chat_goes_on() -> None:
    with stand_in({"/v1/chat/completions": BROKEN}) as url:
        ran = mlx_manager("chat", "m", "--base-url", url, stdin="Hello")
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "Half an\n", "Error: The worker died.\n")
        with in_terminal("chat", "m", "--base-url", url, environment=environment()) as terminal:
            terminal.wait_for(PROMPT)
            assert say(terminal, "Hello").splitlines() == ["Half an", "Error: The worker died."]
            terminal.type("/quit\n")


def test_no_color_is_respected(server: RunningServer) -> None:
    with in_terminal("chat", "demo", environment=environment(server, NO_COLOR=1)) as terminal:
        assert "\x1b[1;36m" not in terminal.wait_for(PROMPT)
        terminal.type("/quit\n")


def test_a_model_cannot_write_control_characters_to_the_terminal() -> None:
    assert printable("a\x1b]0;title\x07b\x9b2J\r\n\tc") == "a]0;titleb2J\n\tc"
    assert printable("é 日本 👩‍👩‍👧 \u202d\u00a0x") == "é 日本 👩‍👩‍👧 \u202d\u00a0x"
