"""What the engine says of a prompt that it knows in part: where it leaves the stored ones, and the evicted ones."""

import pytest

from mlx_manager.mlx_server.engine.messages import Prefilled
from mlx_manager.mlx_server.engine.plan import ModelFacts
from mlx_manager.mlx_server.engine.prefix_tree import PrefixTree, token_array
from tests.mlx_server.engine.simulator import LLAMA, RECURRENT, Simulation, ask, prompt

KINDS = {"llama": LLAMA, "recurrent": RECURRENT}


def read(simulation: Simulation, number: int, tokens: list[int]) -> Prefilled:
    simulation.at(simulation.now, ask(number, tokens))
    simulation.run()
    prefilled = simulation.lives[number].prefilled
    assert prefilled is not None
    return prefilled


@pytest.mark.parametrize("kind", KINDS)
def test_the_place_where_a_prompt_leaves_a_stored_one_is_told(kind: str) -> None:
    simulation = Simulation(KINDS[kind])
    known = prompt(1, 300)
    assert read(simulation, 0, known).shared_tokens == 0
    changed = read(simulation, 1, [*known[:120], *prompt(2, 180)])
    assert (changed.shared_tokens, changed.evicted_tokens) == (120, 0)
    assert changed.cached_tokens == (0 if KINDS[kind].needs_snapshots else 120)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evicted_prompt_is_told_from_a_new_one(kind: str) -> None:
    simulation = Simulation(KINDS[kind], prefix_bytes=45_000)
    known = prompt(1, 300)
    read(simulation, 0, known)
    read(simulation, 1, prompt(2, 300))
    assert simulation.scheduler.prefixes.evictions > 0
    again = read(simulation, 2, [*known, *prompt(3, 50)])
    assert (again.cached_tokens, again.shared_tokens, again.evicted_tokens) == (0, 0, 300)
    new = read(simulation, 3, prompt(4, 300))
    assert (new.cached_tokens, new.shared_tokens, new.evicted_tokens) == (0, 0, 0)


def test_a_prompt_that_never_had_room_counts_as_evicted() -> None:
    simulation = Simulation(prefix_bytes=20_000)
    large = prompt(1, 300)
    read(simulation, 0, large)
    assert read(simulation, 1, large).evicted_tokens == 299


def test_the_oldest_evicted_prompts_are_forgotten_first() -> None:
    tree = PrefixTree(LLAMA, limit_bytes=100 * LLAMA.cut_bytes_per_token, evicted_bytes=16 * 250)
    prompts = [token_array(prompt(seed, 100)) for seed in range(5)]
    for place, tokens in enumerate(prompts):
        tree.store(tokens, place)
    assert tree.match(prompts[-1]).length == 99
    assert [tree.evicted_length(tokens) for tokens in prompts] == [0, 0, 99, 99, 0]


def test_a_conversation_is_remembered_once_though_it_is_evicted_turn_by_turn() -> None:
    facts: ModelFacts = LLAMA
    tree = PrefixTree(facts, limit_bytes=400 * facts.cut_bytes_per_token, evicted_bytes=16 * 450)
    turns = prompt(1, 400)
    for end in (100, 200, 300, 400):
        tree.store(turns[:end], end)
    tree.shrink(0)
    assert tree.evicted_length(token_array([*turns, 1])) == 400


def test_a_cache_that_is_off_remembers_nothing() -> None:
    tree = PrefixTree(LLAMA, limit_bytes=0)
    tree.store(prompt(1, 100), 0)
    assert tree.evicted_length(token_array(prompt(1, 100))) == 0
