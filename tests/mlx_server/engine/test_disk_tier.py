"""What the scheduler writes to disk and reads from it, without MLX and without files."""

import itertools
import random

import msgspec
import pytest

from mlx_manager.mlx_server.engine.disk_tier import IDLE_SECONDS
from mlx_manager.mlx_server.engine.messages import Submit
from mlx_manager.mlx_server.engine.plan import DiskFailed, Listed, ModelFacts, Plan, Spill
from mlx_manager.mlx_server.types import SamplingParams
from tests.mlx_server.engine.simulator import (
    END,
    LLAMA,
    RECURRENT,
    Costs,
    SimulatedDisk,
    Simulation,
    ask,
    drawn,
    prompt,
    stream,
)


def idle(simulation: Simulation) -> None:
    """Lets the engine be idle for long enough to write, as the worker does: a step a second."""
    simulation.run()
    for _ in range(int(IDLE_SECONDS) + 2):
        simulation.now += 1
        simulation.step()
        simulation.run()


def private(sequence: int, tokens: list[int]) -> Submit:
    return Submit(sequence, tokens, 8, [END], SamplingParams(seed=0), keep_off_disk=True)


def answered(disk: SimulatedDisk, *submissions: Submit, facts: ModelFacts = LLAMA) -> Simulation:
    """An engine that has answered them one after the other, and was idle then."""
    simulation = Simulation(facts, disk=disk)
    for submission in submissions:
        simulation.at(simulation.now, submission)
        simulation.run()
    idle(simulation)
    return simulation


@pytest.mark.parametrize("facts", [LLAMA, RECURRENT])
def test_a_prompt_of_an_earlier_process_is_read_and_not_computed(facts: ModelFacts) -> None:
    disk, tokens = SimulatedDisk(), prompt(1, 3000)
    answered(disk, ask(0, tokens), facts=facts)
    simulation = answered(disk, ask(0, [*tokens, *prompt(2, 50)]), facts=facts)
    cached = simulation.lives[0].cached_tokens
    assert cached == (3000 // 256 * 256 if facts is LLAMA else 2999)
    assert simulation.lives[0].tokens == [drawn(0, place) for place in range(len(simulation.lives[0].tokens))]
    assert simulation.scheduler.disk.figures.hits == 1


def test_only_long_prefixes_and_those_seen_twice_are_written() -> None:
    once, twice = SimulatedDisk(), SimulatedDisk()
    answered(once, ask(0, prompt(1, 600)))
    assert once.files == {}
    answered(twice, ask(0, prompt(1, 600)), ask(1, [*prompt(1, 600), *prompt(2, 300)]))
    assert sorted(block.start for block in twice.files.values()) == [0, 256]


def test_what_a_request_keeps_off_the_disk_is_written_only_as_far_as_another_has_it() -> None:
    disk, shared = SimulatedDisk(), prompt(1, 1100)
    answered(disk, private(0, [*shared, *prompt(2, 1500)]), private(1, [*shared, *prompt(2, 1500)]))
    assert disk.files == {}
    answered(disk, private(0, [*shared, *prompt(2, 1500)]), ask(1, [*shared, *prompt(3, 30)]))
    assert max(block.end for block in disk.files.values()) == 1024


def test_prefixes_are_on_disk_before_they_are_evicted() -> None:
    disk = SimulatedDisk()
    simulation = Simulation(prefix_bytes=600_000, disk=disk)
    prompts = [prompt(n, 1500) for n in range(8)]
    for n, tokens in enumerate(prompts):
        simulation.at(0, ask(n, tokens, 200))
    simulation.run()
    assert simulation.scheduler.prefixes.evictions > 0
    assert len(disk.files) >= 4 * (1500 // 256)


def test_a_step_writes_one_block_at_most() -> None:
    """So the writing of 100 MB lengthens no gap of a stream by more than the copy of a block."""
    simulation = Simulation(prefix_bytes=600_000, disk=SimulatedDisk())
    simulation.at(0, stream(100))
    for n in range(8):
        simulation.at(n / 10, ask(n, prompt(n, 1500)))
    simulation.run(until=20)
    plans = [msgspec.msgpack.decode(plan, type=Plan) for plan in simulation.plans]
    spills = [sum(isinstance(edit, Spill) for edit in plan.edits) for plan in plans]
    assert sum(spills) > 20
    assert max(spills) == 1


def test_other_prompts_and_streams_go_on_while_one_waits_for_the_disk() -> None:
    disk, tokens = SimulatedDisk(), prompt(1, 3000)
    answered(disk, ask(0, tokens))
    disk.delay_steps = 100
    simulation = Simulation(disk=disk)
    simulation.at(0, stream(1))
    simulation.run(until=1)
    simulation.at(1, ask(2, tokens))
    simulation.at(1, ask(3, prompt(4, 100)))
    while simulation.lives.get(2) is None or simulation.lives[2].cached_tokens is None:
        simulation.step()
    assert simulation.lives[2].cached_tokens == 2816
    assert simulation.lives[3].tokens
    times = simulation.lives[1].times
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 0.15


def test_a_disk_that_is_slower_than_the_model_is_not_waited_for() -> None:
    disk, tokens = SimulatedDisk(read_seconds=1.0), prompt(1, 3000)
    answered(disk, ask(0, tokens))
    simulation = answered(disk, ask(0, tokens), ask(1, [*prompt(1, 3000)[:2000], *prompt(5, 500)]))
    first = simulation.lives[0]
    assert first.cached_tokens == 2816, "the rates are unknown before the first reading"
    simulation.scheduler.prefixes.shrink(0)
    reads = disk.reads
    simulation.at(simulation.now, ask(2, tokens))
    simulation.run()
    assert (simulation.lives[2].cached_tokens, disk.reads) == (0, reads)


def test_a_block_that_cannot_be_read_costs_what_follows_it_only() -> None:
    disk, tokens = SimulatedDisk(), prompt(1, 3000)
    answered(disk, ask(0, tokens))
    disk.lost = {next(name for name, block in disk.files.items() if block.start == 1024)}
    simulation = answered(disk, ask(0, tokens))
    assert simulation.lives[0].cached_tokens == 1024
    assert disk.was_read == {}


def test_what_the_budget_removed_is_written_again_at_the_end_only() -> None:
    """With more prefixes in memory than the disk may hold, the server would otherwise write without end."""
    disk = SimulatedDisk()
    simulation = answered(disk, ask(0, prompt(1, 3000)))
    written = dict(disk.files)
    disk.files.clear()
    disk.events.append(Listed({}))
    idle(simulation)
    assert disk.files == {}
    simulation.scheduler.close()
    simulation.step()
    while simulation.scheduler.disk.is_writing:
        simulation.step()
    assert disk.files == written


def test_prompts_that_wait_go_on_when_the_disk_fails() -> None:
    disk, tokens = SimulatedDisk(), prompt(1, 3000)
    answered(disk, ask(0, tokens))
    disk.delay_steps = 10**9
    simulation = Simulation(disk=disk)
    simulation.at(0, ask(0, tokens))
    for _ in range(20):
        simulation.step()
    assert not simulation.lives[0].tokens
    disk.events.append(DiskFailed("staged"))
    simulation.run()
    assert simulation.lives[0].cached_tokens == 0
    assert simulation.lives[0].end is not None


@pytest.mark.parametrize("facts", [LLAMA, RECURRENT])
@pytest.mark.parametrize("seed", range(5))
def test_the_runner_is_never_asked_for_what_is_not_there(facts: ModelFacts, seed: int) -> None:
    """The simulated runner compares all tokens that are stored, written, read and restored."""
    rng, disk = random.Random(seed), SimulatedDisk(delay_steps=3)
    for _ in range(4):
        simulation = Simulation(facts, kv_bytes=10**7, prefix_bytes=400_000, costs=Costs(), disk=disk)
        known: list[list[int]] = [prompt(n, 700) for n in range(3)]
        for sequence in range(30):
            known_part = rng.choice(known)[: rng.choice([None, rng.randint(1, 1500)])]
            tokens = known_part + prompt(rng.randrange(50), rng.randint(1, 400))
            known.append(tokens)
            submission = ask(sequence, tokens, 30) if rng.random() < 0.9 else private(sequence, tokens)
            simulation.at(rng.random() * 20, submission)
        idle(simulation)
        assert all(life.end is not None for life in simulation.lives.values())
        for name in rng.sample(sorted(disk.files), len(disk.files) // 5):
            del disk.files[name]
    assert disk.reads > 0
