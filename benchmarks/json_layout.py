"""Measures how well models fill JSON schemas under whitespace rules: `python -m benchmarks.json_layout FOLDER...`

Each prompt states facts and asks for them as JSON, greedily. An answer is valid if it ends and matches its schema. The
score counts the values that equal the expected ones.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jsonschema
from mlx_lm.tokenizer_utils import load as load_tokenizer

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.messages import RequestFinished, Step, Submit
from mlx_manager.mlx_server.grammars.sources import JSON_OPTIONS, translate
from mlx_manager.mlx_server.grammars.verdict import Question
from mlx_manager.mlx_server.types import SamplingParams

LAYOUTS: dict[str, dict[str, Any]] = {
    "free": {"whitespace_pattern": r"( |\n {0,8})"},
    "one line": {"whitespace_flexible": False, "key_separator": ": ?", "item_separator": ", ?"},
    "spaced line": {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "},
    "break behind commas": {
        "whitespace_flexible": False,
        "key_separator": ": ?",
        "item_separator": r",( |\n {0,8})?",
    },
}
MAX_TOKENS = 120
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("Ann is 31 years old.", {"name": "Ann", "age": 31}),
    ("My friend Tom lives in Oslo.", {"name": "Tom", "city": "Oslo"}),
    ("A red light that is on.", {"color": "red", "on": True}),
    ("The book Emma has 474 pages and is by Austen.", {"title": "Emma", "author": "Austen", "pages": 474}),
    ("Buy milk, bread and eggs.", {"items": ["milk", "bread", "eggs"]}),
    ("The green car has 4 doors.", {"vehicle": "car", "color": "green", "doors": 4}),
    ("Order 7: two pizzas for table 12.", {"order": 7, "food": "pizzas", "table": 12}),
    ("Lisa (29) is a doctor in Rome.", {"person": {"name": "Lisa", "age": 29}, "job": "doctor", "city": "Rome"}),
    ("It is 15 degrees and raining in Paris.", {"city": "Paris", "degrees": 15, "raining": True}),
    ("The scores were 3, 5 and 8.", {"scores": [3, 5, 8]}),
    ("Max has a dog called Rex and a cat called Mia.", {"owner": "Max", "dog": "Rex", "cat": "Mia"}),
    ("The train to Bern leaves at 9 from platform 2.", {"to": "Bern", "hour": 9, "platform": 2}),
]


def schema_of(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        properties = {name: schema_of(part) for name, part in value.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    if isinstance(value, list):
        return {"type": "array", "items": schema_of(value[0])}
    return {"type": {bool: "boolean", int: "integer", str: "string"}[type(value)]}


def leaves(value: Any) -> list[Any]:
    """The scalars of the value, in order."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]


def answers(core: EngineCore, tokenizer: Any, layout: dict[str, Any]) -> list[tuple[str, bool]]:
    """The text of each example's answer, and whether it is complete."""
    JSON_OPTIONS.clear()
    JSON_OPTIONS.update({**layout, "coerce_one_of": True})
    for number, (fact, expected) in enumerate(EXAMPLES):
        fields = ", ".join(expected)
        content = f"{fact} Answer as JSON with {fields}."
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
        )
        grammar = translate(Question("json_schema", json.dumps(schema_of(expected)))).text
        stop = list(tokenizer.eos_token_ids)
        core.submit(Submit(number, prompt, MAX_TOKENS, stop, SamplingParams(temperature=0, seed=0), grammar, None))
    tokens: dict[int, list[int]] = {number: [] for number in range(len(EXAMPLES))}
    reasons: dict[int, str] = {}
    while len(core) or len(reasons) < len(EXAMPLES):
        for event in core.step():
            if isinstance(event, Step):
                for sequence, token in zip(event.sequences, event.tokens, strict=True):
                    tokens[sequence].append(token)
            elif isinstance(event, RequestFinished):
                reasons[event.sequence] = event.reason
    return [
        (tokenizer.decode(tokens[number], skip_special_tokens=True), reasons[number] == "stop")
        for number in range(len(EXAMPLES))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--show", action="store_true", help="print every answer")
    options = parser.parse_args()
    total = sum(len(leaves(expected)) for _, expected in EXAMPLES)
    for folder in options.folders:
        core, tokenizer = EngineCore(load(folder), tokenizer_file=folder / "tokenizer.json"), load_tokenizer(folder)
        for name, layout in LAYOUTS.items():
            valid = right = 0
            for (_, expected), (text, ended) in zip(EXAMPLES, answers(core, tokenizer, layout), strict=True):
                if options.show:
                    print(repr(text))
                if not ended:
                    continue
                value = json.loads(text)
                jsonschema.validate(value, schema_of(expected))
                valid += 1
                right += sum(got == wanted for got, wanted in zip(leaves(value), leaves(expected), strict=False))
            print(f"{folder.name:14} {name:20} valid {valid:2}/{len(EXAMPLES)}  values {right:2}/{total}", flush=True)


if __name__ == "__main__":
    main()
