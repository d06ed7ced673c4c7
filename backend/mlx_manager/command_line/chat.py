"""`chat`: a chat in the terminal, with the running server or one that the command starts.

Ctrl-C stops the current answer or clears the current line. Ctrl-D and /quit end the chat. If the input is not a
terminal, all of it is one message, and stdout gets only the answer.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from mlx_manager.command_line.connection import Server
from mlx_manager.command_line.console import CommandFailed, note
from mlx_manager.command_line.conversation import Conversation, Piece
from mlx_manager.command_line.own_server import server_for

HELP = """\
/system TEXT   sets the system message; without TEXT, removes it
/reset         clears the conversation and keeps the system message
/save FILE     writes model and messages as a JSON body of /v1/chat/completions
/help          this list
/quit          ends the chat, like Ctrl-D; Ctrl-C stops an answer"""
_DIM, _PLAIN = "\033[2m", "\033[0m"
_PROMPT = "> "
_COLOURED_PROMPT = "\001\033[1;36m\002> \001\033[0m\002"  # readline must not count what is between \001 and \002
_KEPT_CONTROLS = "\n\t"
_ENDS = {"stopped": "(stopped)", "length": "(cut off: the answer reached its limit of tokens)"}


def chat(model: str | None, base_url: str | None, api_key: str | None, system: str | None) -> None:
    message = None if sys.stdin.isatty() else _piped_message()
    quiet = not sys.stderr.isatty()
    with server_for(model, base_url, api_key, purpose="this chat", quiet=quiet) as server:
        conversation = Conversation(model if model is not None else server.a_model(), system)
        if message is not None:
            _answer_once(server, conversation, message)
        else:
            note(f"{conversation.model} at {server.root}. /help lists the commands.")
            _Terminal(server, conversation).run()


def _piped_message() -> str:
    try:
        message = sys.stdin.buffer.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise CommandFailed(
            f"The message is not UTF-8: byte {exc.start + 1} is {exc.object[exc.start]:#x}. Convert it."
        ) from exc
    if not message:
        raise CommandFailed("The input is empty. Pipe a message in, or start the chat in a terminal.")
    return message


def _answer_once(server: Server, conversation: Conversation, message: str) -> None:
    try:
        for piece in conversation.ask(server, message):
            if piece.kind == "text":
                print(printable(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)
    finally:
        if conversation.turns:
            print(flush=True)


class _Terminal:
    """The loop of a chat in a terminal."""

    def __init__(self, server: Server, conversation: Conversation) -> None:
        self._server = server
        self._conversation = conversation
        self._saved: set[Path] = set()
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        with contextlib.suppress(ImportError):  # this Python has no readline
            import readline  # gives input() line editing and a history

            readline.parse_and_bind("set enable-bracketed-paste on")  # several pasted lines are one message

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script may ignore it
        with contextlib.suppress(EOFError):
            while (line := self._read()) != "/quit":
                try:
                    self._obey(line)
                except KeyboardInterrupt:  # a second Ctrl-C while the first is handled
                    print()
            return
        print()

    def _read(self) -> str:
        try:
            line = input(_COLOURED_PROMPT if self._coloured else _PROMPT).strip()
            line.encode("utf-8")  # readline passes invalid bytes on as surrogates
            return line
        except UnicodeError:
            note("Error: the line is not UTF-8.")
            return ""
        except KeyboardInterrupt:
            print()
            return ""

    def _obey(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(*line[1:].partition(" ")[::2])
            elif line:
                self._answer(line)
        except CommandFailed as exc:
            note(f"Error: {exc}")

    def _command(self, name: str, argument: str) -> None:
        argument = argument.strip()
        match name:
            case "help":
                note(HELP)
            case "system":
                self._conversation.system = argument if argument else None
            case "reset":
                self._conversation.turns.clear()
            case "save":
                self._save(argument)
            case _:
                raise CommandFailed(f"Unknown command /{name}. See /help for all commands.")

    def _answer(self, text: str) -> None:
        with contextlib.closing(self._conversation.ask(self._server, text)) as pieces:
            try:
                end = self._show(pieces)
            except KeyboardInterrupt:
                end = "stopped"
            finally:
                print(flush=True)
        if end in _ENDS:
            note(_ENDS[end])

    def _show(self, pieces: Iterator[Piece]) -> str | None:
        """Prints an answer as it arrives, and returns its finish reason. Colour terminals show reasoning, dimmed."""
        thinking, end = False, None
        for piece in pieces:
            text = printable(piece.text)
            if piece.kind == "end":
                end = text
            elif piece.kind == "text":
                print(f"\n\n{text}" if thinking else text, end="", flush=True)
                thinking = False
            elif self._coloured:
                print(f"{_DIM}{text}{_PLAIN}", end="", flush=True)
                thinking = True
        return end

    def _save(self, name: str) -> None:
        if not name:
            raise CommandFailed("Missing file name. Use /save FILE.")
        file = Path(name).expanduser()
        body = {"model": self._conversation.model, "messages": self._conversation.messages}
        try:
            with file.open("w" if file in self._saved else "x", encoding="utf-8") as out:
                out.write(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
        except FileExistsError as exc:
            raise CommandFailed(f"{file} already exists. Choose another name.") from exc
        except OSError as exc:
            raise CommandFailed(f"{file} cannot be written: {exc.strerror}. Choose another file.") from exc
        self._saved.add(file)
        note(f"Saved to {file}")


def printable(text: str) -> str:
    """Removes control characters, so that a model cannot move the cursor or rename the window."""
    return "".join(char for char in text if char.isprintable() or char in _KEPT_CONTROLS or ord(char) > 0x9F)
