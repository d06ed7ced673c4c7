"""What each parameter does to an answer, seen through the openai package."""

import math
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from mlx_manager.demo import demo_model_path
from mlx_manager.mlx_server.models.tokenization import load_tokenizer
from tests.running_server import RunningServer

TOKENIZER = load_tokenizer(demo_model_path())
STORY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story."}]
ONCE = "Once upon a time"
FREE: dict[str, Any] = {"model": "demo", "temperature": 1, "max_tokens": 25}
GREEDY: dict[str, Any] = {"model": "demo", "temperature": 0, "max_tokens": 25}


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="not-needed", max_retries=0)


def test_n_choices_are_those_of_the_next_seeds_and_the_prompt_is_counted_once(client: openai.OpenAI) -> None:
    many = client.chat.completions.create(messages=STORY, seed=7, n=4, **FREE)
    alone = [client.chat.completions.create(messages=STORY, seed=7 + i, **FREE) for i in range(4)]
    texts = [choice.message.content for choice in many.choices]
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    assert texts == [one.choices[0].message.content for one in alone]
    assert len(set(texts)) == 4
    assert many.usage is not None
    assert [one.usage.prompt_tokens for one in alone if one.usage] == [many.usage.prompt_tokens] * 4
    assert many.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone if one.usage)


def test_choices_of_a_stream_come_interleaved_each_with_its_role_and_end(client: openai.OpenAI) -> None:
    long = FREE | {"max_tokens": 300, "extra_body": {"ignore_eos": True}}
    chunks = list(client.chat.completions.create(messages=STORY, seed=7, n=3, stream=True, **long))
    parts = [choice for chunk in chunks for choice in chunk.choices]
    assert [part.index for part in parts if part.delta.role == "assistant"] == [0, 1, 2]
    assert sorted(part.index for part in parts if part.finish_reason) == [0, 1, 2]
    texts = [part.index for part in parts if part.delta.content]
    first_end = next(i for i, part in enumerate(parts) if part.finish_reason)
    assert {part.index for part in parts[3:first_end]} == {0, 1, 2}
    assert set(texts) == {0, 1, 2}


def test_logprobs_spell_the_answer_token_by_token(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        messages=[{"role": "user", "content": "Count to 5"}], logprobs=True, top_logprobs=20, **GREEDY
    )
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == completion.choices[0].message.content
    for token in logprobs.content:
        assert bytes(token.bytes or []) == token.token.encode()
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert len(token.top_logprobs) == 20
        assert 0.5 < sum(math.exp(top.logprob) for top in token.top_logprobs) < 1.001


def test_logprobs_of_what_a_stop_string_cuts_are_left_out(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        messages=[{"role": "user", "content": "Count to 9"}], logprobs=True, stop=[" 5"], **GREEDY
    )
    choice = completion.choices[0]
    assert choice.message.content == "1, 2, 3, 4,"
    assert choice.logprobs is not None
    assert "".join(token.token for token in choice.logprobs.content or []) == "1, 2, 3, 4,"


def test_without_logprobs_there_are_none(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(messages=STORY, **GREEDY).choices[0].logprobs is None


def test_logprobs_are_the_models_own_whatever_the_sampling(client: openai.OpenAI) -> None:
    def first(**parameters: Any) -> tuple[str, float]:
        options = {**GREEDY, "logprobs": True, "max_tokens": 1, **parameters}
        logprobs = client.chat.completions.create(messages=STORY, **options).choices[0].logprobs
        assert logprobs is not None
        (token,) = logprobs.content or []
        return token.token, round(token.logprob, 3)

    assert first() == first(temperature=0.01) == first(presence_penalty=2, frequency_penalty=1) == first(top_p=0.1)


def test_prompts_of_all_kinds_are_the_same_prompts(client: openai.OpenAI) -> None:
    token_ids = [TOKENIZER.encode(text, add_special_tokens=True) for text in (ONCE, "The cat")]
    texts = client.completions.create(prompt=[ONCE, "The cat"], **GREEDY)
    ids = client.completions.create(prompt=token_ids, **GREEDY)
    alone = [client.completions.create(prompt=prompt, **GREEDY) for prompt in (ONCE, token_ids[1])]
    assert [choice.text for choice in texts.choices] == [choice.text for choice in ids.choices]
    assert [choice.text for choice in texts.choices] == [one.choices[0].text for one in alone]
    for usage in (texts.usage, ids.usage):
        assert usage is not None
        assert usage.prompt_tokens == sum(map(len, token_ids))


def test_choices_of_several_prompts_are_in_the_order_of_the_prompts(client: openai.OpenAI) -> None:
    both = client.completions.create(prompt=[ONCE, "The cat"], n=2, seed=3, echo=True, **FREE)
    assert [choice.text.startswith(ONCE) for choice in both.choices] == [True, True, False, False]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    second = client.completions.create(prompt="The cat", n=2, seed=3, echo=True, **FREE)
    assert [choice.text for choice in both.choices[2:]] == [choice.text for choice in second.choices]


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI) -> None:
    scored = client.completions.create(model="demo", prompt=ONCE, max_tokens=0, echo=True, logprobs=1)
    choice = scored.choices[0]
    assert (choice.text, choice.finish_reason) == (ONCE, "length")
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.tokens[0] == "<|begin_of_text|>"
    assert "".join(logprobs.tokens[1:]) == ONCE
    assert logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in logprobs.token_logprobs[1:])
    placed = list(zip(logprobs.tokens, logprobs.text_offset, strict=True))[1:]
    assert all(ONCE[offset:].startswith(token) for token, offset in placed)


def test_a_prompts_logprobs_are_those_it_had_when_it_was_generated(client: openai.OpenAI) -> None:
    generated = client.completions.create(prompt=ONCE, logprobs=0, **GREEDY).choices[0]
    echoed = client.completions.create(
        model="demo", prompt=ONCE + generated.text, max_tokens=0, echo=True, logprobs=0
    ).choices[0]
    assert generated.logprobs is not None
    assert echoed.logprobs is not None
    count = len(generated.logprobs.tokens or [])
    assert (echoed.logprobs.tokens or [])[-count:] == generated.logprobs.tokens
    assert (echoed.logprobs.text_offset or [])[-count:] == [
        len(ONCE) + offset for offset in generated.logprobs.text_offset or []
    ]
    assert (echoed.logprobs.token_logprobs or [])[-count:] == pytest.approx(generated.logprobs.token_logprobs, abs=1e-3)


def test_best_of_gives_the_likeliest_by_mean_logprob(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {**FREE, "prompt": ONCE, "seed": 5, "max_tokens": 12, "logprobs": 0}
    best = client.completions.create(best_of=6, n=2, **options)
    every = client.completions.create(n=6, **options)

    def mean(choice: Any) -> float:
        return float(sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs))

    ranked = sorted(every.choices, key=mean, reverse=True)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage is not None
    assert every.usage is not None
    assert best.usage.total_tokens == every.usage.total_tokens


def test_a_list_of_prompts_is_refused_whole(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(prompt=[[1, 2], [2048]], **GREEDY)
    assert refused.value.param == "prompt"


def test_extensions_of_local_servers(client: openai.OpenAI) -> None:
    def count(**extensions: Any) -> Any:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count to 5"}]
        return client.chat.completions.create(messages=messages, extra_body=extensions, **GREEDY)

    (comma,) = TOKENIZER.encode(",", add_special_tokens=False)
    assert count(stop_token_ids=[comma]).choices[0].message.content == "1"
    assert count(stop=" 3", include_stop_str_in_output=True).choices[0].message.content == "1, 2, 3"
    assert count(stop=",", min_tokens=3).choices[0].message.content == "1, 2"
    assert count(ignore_eos=True).usage.completion_tokens == 25
    assert count(min_tokens=20).usage.completion_tokens >= 20
    assert "<|eot_id|>" in count(ignore_eos=True, skip_special_tokens=False).choices[0].message.content
    assert count(repeat_penalty=2).choices[0].message.content == count(repetition_penalty=2).choices[0].message.content
    assert count(chat_template_kwargs={"enable_thinking": True}).usage.completion_tokens > 14
    thought, thinking = count(reasoning_effort="high"), count(chat_template_kwargs={"enable_thinking": True})
    assert thought.usage.total_tokens == thinking.usage.total_tokens
    assert count(reasoning_effort="none").choices[0].message.content == "1, 2, 3, 4, 5"


def test_an_answer_can_be_begun_for_the_model(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        messages=[{"role": "user", "content": "Count to 5"}, {"role": "assistant", "content": "1, 2,"}],
        extra_body={"continue_final_message": True},
        **GREEDY,
    )
    assert completion.choices[0].message.content == " 3, 4, 5"


def test_a_tools_result_reaches_the_model(client: openai.OpenAI) -> None:
    call: Any = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    completion = client.chat.completions.create(
        messages=[
            {"role": "user", "content": "What is the weather in Oslo?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": '{"temperature": 7, "condition": "rainy"}'},
        ],
        **GREEDY,
    )
    assert "rainy" in (completion.choices[0].message.content or "")


def test_fingerprint_is_the_same_in_every_answer_of_a_model(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(messages=STORY, **GREEDY)
    completion = client.completions.create(prompt=ONCE, **GREEDY)
    streamed = {chunk.system_fingerprint for chunk in client.completions.create(prompt=ONCE, stream=True, **GREEDY)}
    assert {chat.system_fingerprint, completion.system_fingerprint} | streamed == {chat.system_fingerprint}
    other = client.completions.create(prompt=ONCE, **{**GREEDY, "model": "babbler"})
    assert other.system_fingerprint != chat.system_fingerprint


def test_what_is_ignored_changes_nothing(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(messages=STORY, **GREEDY)
    loaded = client.chat.completions.create(
        messages=STORY,
        user="me",
        metadata={"a": "b"},
        store=True,
        service_tier="auto",
        verbosity="low",
        prediction={"type": "content", "content": "Once"},
        safety_identifier="x",
        prompt_cache_key="y",
        **GREEDY,
    )
    assert loaded.choices == plain.choices


def test_usage_tells_how_much_of_the_prompt_was_cached(client: openai.OpenAI) -> None:
    prompt = "Once there was a prompt that nobody had ever sent before, and it was long enough to be kept for later."
    first, second = (client.completions.create(prompt=prompt, n=2, **GREEDY).usage for _ in range(2))
    assert first is not None
    assert first.prompt_tokens_details is not None
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second is not None
    assert second.prompt_tokens_details is not None
    assert second.prompt_tokens_details.cached_tokens == second.prompt_tokens - 1
    assert (second.prompt_tokens, second.completion_tokens) == (first.prompt_tokens, first.completion_tokens)
