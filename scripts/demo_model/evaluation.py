"""Asks an exported model the held-out questions through mlx-lm, greedily, and counts exact answers, including the end
token."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import BatchGenerator

from demo_model.chat import END_OF_MESSAGE, END_OF_TURN, Conversation, expected_answer
from demo_model.dataset import evaluation_names, evaluation_questions

_MAX_TOKENS = 600
_STORY_WORDS = range(150, 400)


@dataclass(frozen=True, slots=True)
class Score:
    name: str
    right: int
    asked: int
    wrong: tuple[str, ...]


def evaluate(folder: Path) -> list[Score]:
    """Runs in float32, the fastest type on a CPU."""
    model, tokenizer, *_ = load(str(folder))
    model.set_dtype(mx.float32)
    return [_score(name, evaluation_questions(name), model, tokenizer) for name in evaluation_names()]


def table(scores: Sequence[Score]) -> str:
    lines = ["| skill | exact | asked |", "| --- | --- | --- |"]
    lines += [f"| {score.name} | {100 * score.right / score.asked:.1f} % | {score.asked} |" for score in scores]
    return "\n".join(lines)


def _score(name: str, questions: list[Conversation], model: Any, tokenizer: Any) -> Score:
    answers = _answers(model, tokenizer, [prompt_ids(tokenizer, question) for question in questions])
    wrong = tuple(
        f"{name}: {question.turns[-2].content!r} -> {answer!r}"
        for question, answer in zip(questions, answers, strict=True)
        if not _is_right(name, expected_answer(question), answer)
    )
    return Score(name, len(questions) - len(wrong), len(questions), wrong)


def prompt_ids(tokenizer: Any, question: Conversation) -> list[int]:
    """All turns except the last, rendered by the chat template of the exported model."""
    ids: list[int] = tokenizer.apply_chat_template(
        question.messages()[:-1],
        tools=[tool.schema() for tool in question.tools] or None,
        enable_thinking=question.thinking,
        add_generation_prompt=True,
    )
    return ids


def _answers(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[str]:
    """Greedy answers, with their end tokens."""
    ends = [[tokenizer.convert_tokens_to_ids(token)] for token in (END_OF_TURN, END_OF_MESSAGE)]
    generator: Any = BatchGenerator(model, stop_tokens=ends)
    uids = generator.insert(prompts, [_MAX_TOKENS] * len(prompts))
    generated: dict[int, list[int]] = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for response in responses:
            generated[response.uid].append(response.token)
    generator.close()
    return [tokenizer.decode(generated[uid], skip_special_tokens=False) for uid in uids]


def _is_right(name: str, expected: str, answer: str) -> bool:
    """A story is right if it ends within the usual length."""
    if name == "story":
        return answer.endswith(END_OF_TURN) and len(answer.split()) in _STORY_WORDS
    return answer == expected


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an exported demo model.")
    parser.add_argument("folder", type=Path)
    scores = evaluate(parser.parse_args().folder)
    for score in scores:
        print(*score.wrong, sep="\n")
    print(table(scores))


if __name__ == "__main__":
    main()
