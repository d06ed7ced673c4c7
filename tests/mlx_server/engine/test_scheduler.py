"""The scheduler under simulated traffic: its runner checks every plan, the caches and their memory."""

import itertools
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.nn as nn
import msgspec
import pytest

from mlx_manager.mlx_server.engine.core import EngineCore
from mlx_manager.mlx_server.engine.generator import load
from mlx_manager.mlx_server.engine.kv_memory import KvMemory
from mlx_manager.mlx_server.engine.messages import Cancel, Limits, Step, Submit, UpMessage
from mlx_manager.mlx_server.engine.plan import ModelFacts, Outcome, Plan
from mlx_manager.mlx_server.engine.runner import Runner
from mlx_manager.mlx_server.engine.scheduler import Scheduler
from mlx_manager.mlx_server.types import SamplingParams
from tests.mlx_server.engine.simulator import (
    ALONE,
    AMPLE,
    END,
    LLAMA,
    RECURRENT,
    REPEATING,
    Costs,
    Faults,
    Simulation,
    ask,
    drawn,
    prompt,
    stream,
)
from tests.running_server import HANG_SECONDS

KINDS = {"llama": LLAMA, "recurrent": RECURRENT, "one at a time": ALONE, "repeating": REPEATING}
MACHINES = {"slow": Costs(prompt_token=1 / 400), "middling": Costs(), "fast": Costs(1 / 20_000, 0.002, 0.0001)}


def room_for(facts: ModelFacts, rows: int, longest: int) -> int:
    return KvMemory.of(facts, AMPLE).needed(rows, longest)


def answer(sequence: int, max_tokens: int) -> list[int]:
    """What a sequence gives in any company."""
    tokens = [drawn(sequence, place) for place in range(max_tokens)]
    return tokens[: tokens.index(END) + 1] if END in tokens else tokens


def traffic(seed: int, requests: int, per_second: float, longest: int = 1500) -> list[tuple[float, Submit]]:
    """Prompts of all lengths, half of which begin with one of three system prompts."""
    rng = random.Random(seed)
    systems = [prompt(1000 + n, 50 + 200 * n) for n in range(3)]
    arrivals, now = [], 0.0
    for sequence in range(requests):
        now += rng.expovariate(per_second)
        beginning = [*rng.choice(systems), END] if rng.random() < 0.5 else []
        tokens = beginning + prompt(rng.randrange(10**6), int(longest ** rng.uniform(0.2, 1)))
        grammar = "a grammar" if rng.random() < 0.1 else None
        arrivals.append((now, ask(sequence, tokens, rng.randint(1, 120), grammar)))
    return arrivals


def play(simulation: Simulation, arrivals: list[tuple[float, Submit]]) -> Simulation:
    for seconds, message in arrivals:
        simulation.at(seconds, message)
    simulation.run()
    return simulation


def assert_nothing_is_left(simulation: Simulation) -> None:
    runner = simulation.runner
    assert not runner.known
    assert not runner.batch
    assert not runner.prefilling
    assert not runner.compiling
    assert runner.stored_bytes() == simulation.scheduler.prefixes.nbytes


def test_scheduler_and_its_traffic_run_without_mlx() -> None:
    command = (
        "import sys; from tests.mlx_server.engine.simulator import Simulation, ask, prompt; "
        "s = Simulation(); s.at(0, ask(0, prompt(0, 3000))); s.run(); "
        "print(len(s.lives[0].tokens), {'mlx', 'mlx_lm'} & {*sys.modules})"
    )
    root = Path(__file__).parents[3]
    environment = {"PYTHONPATH": f"{root}:{root / 'backend'}"}
    printed = subprocess.run(
        [sys.executable, "-c", command],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    ).stdout
    assert printed.strip() == "8 set()"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory_rows", [3, 10**6])
def test_every_sequence_gives_its_own_tokens_whatever_the_traffic(kind: str, memory_rows: int) -> None:
    facts, arrivals = KINDS[kind], traffic(seed=1, requests=150, per_second=40)
    faults = Faults(invalid_draws=20)
    simulation = Simulation(facts, room_for(facts, memory_rows, 2048), room_for(facts, 2, 2048), faults=faults)
    play(simulation, arrivals)
    for _, message in arrivals:
        life = simulation.lives[message.sequence]
        assert life.tokens == answer(message.sequence, message.max_tokens)
        assert life.end == ("stop" if END in life.tokens else "length")
    assert simulation.scheduler.prefixes.hits > 0
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_keeps_to_limits_that_change_under_load(kind: str) -> None:
    """The simulator checks at every step: what is held, rows at the longest's length, stays below the limit."""
    facts = KINDS[kind]
    simulation = Simulation(facts, room_for(facts, 12, 2048), room_for(facts, 4, 2048))
    rng = random.Random(3)
    for n in range(30):
        rows = rng.randint(1, 16)
        simulation.at(0.2 * n, Limits(room_for(facts, rows, 2048), 0, room_for(facts, rng.randint(0, rows), 2048)))
    arrivals = traffic(seed=2, requests=200, per_second=40)
    play(simulation, arrivals)
    assert all(simulation.lives[m.sequence].tokens == answer(m.sequence, m.max_tokens) for _, m in arrivals)
    assert simulation.scheduler.prefixes.evictions > 0
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shares_its_beginning", [False, True])
def test_side_request_waits_for_the_chunk_in_progress_and_no_longer(machine: str, shares_its_beginning: bool) -> None:
    costs = MACHINES[machine]
    long = prompt(0, 24_000)
    side = (long[:200] if shares_its_beginning else []) + prompt(1, 400 if shares_its_beginning else 600)
    alone = Simulation(costs=costs)
    play(alone, [(0.0, ask(0, prompt(9, 2000))), (60.0, ask(1, side))])
    alone_seconds = alone.first_token_seconds(1, since=60.0)
    whole = 24_000 * costs.prompt_token
    for part in range(1, 20):
        arrives = whole * part / 20
        simulation = Simulation(costs=costs)
        play(simulation, [(0.0, ask(0, long)), (arrives, ask(1, side))])
        seconds = simulation.first_token_seconds(1, since=arrives)
        assert seconds <= alone_seconds + simulation.longest_chunk + 4 * costs.step


@pytest.mark.parametrize("machine", MACHINES)
def test_long_prompt_gets_a_fair_part_beside_an_endless_row_of_short_ones(machine: str) -> None:
    """At least a third of the machine, which has more to do than it can."""
    costs = MACHINES[machine]
    simulation = Simulation(costs=costs)
    simulation.at(0.0, ask(0, prompt(0, 20_000), 1))
    alone_seconds = 20_000 * costs.prompt_token
    for n in range(1, 2000):
        simulation.at(1.2 * n * 300 * costs.prompt_token / 2, ask(n, prompt(n, 300), 1))
    simulation.run(until=3 * alone_seconds)
    assert simulation.lives[0].end is not None
    assert sum(life.end is not None for life in simulation.lives.values()) > 50


def test_prompts_of_one_length_are_answered_in_the_order_in_which_they_came() -> None:
    simulation = play(Simulation(), [(0.001 * n, ask(n, prompt(n, 3000), 1)) for n in range(8)])
    firsts = [simulation.lives[n].times[0] for n in range(8)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("machine", MACHINES)
def test_running_streams_wait_for_one_chunk_of_the_latency_target_at_most(machine: str) -> None:
    costs = MACHINES[machine]
    simulation = Simulation(costs=costs)
    for n in range(4):
        simulation.at(0.0, stream(n))
    simulation.at(0.0, ask(9, prompt(8, 3000), 1))
    begins = 10.0 + 3000 * costs.prompt_token
    simulation.at(begins, ask(10, prompt(10, 20_000), 1))
    simulation.run(until=begins + 4 * 20_000 * costs.prompt_token)
    during = [time for time in simulation.lives[0].times if begins < time < simulation.lives[10].times[0]]
    gaps = [later - earlier for earlier, later in itertools.pairwise(during)]
    step = costs.step + 10 * costs.row
    assert max(gaps) <= max(0.1, 32 * costs.prompt_token) + 2 * step
    assert len(during) * step >= 0.25 * (during[-1] - during[0])


def test_long_sequence_leaves_the_rest_of_memory_to_short_ones() -> None:
    """One with 32,000 tokens beside 15 with 500, in 1.3 x the memory of their tokens."""
    held = (32_000 + 15 * 500) * LLAMA.bytes_per_token
    facts = msgspec.structs.replace(LLAMA, growing_layers=32)
    simulation = Simulation(facts, int(1.3 * held), 0, MACHINES["fast"])
    simulation.at(0.0, Submit(0, prompt(0, 32_000), 200, [], SamplingParams(seed=0)))
    while not simulation.scheduler.running:
        simulation.step()
    for n in range(1, 16):
        simulation.at(simulation.now, Submit(n, prompt(n, 500), 100, [], SamplingParams(seed=0)))
    while len(simulation.scheduler.running) < 16:
        simulation.step()
        assert simulation.lives[0].end is None
    simulation.run()
    assert all(life.end == "length" for life in simulation.lives.values())


def test_memory_that_is_full_is_asked_before_the_pipeline_is_drained() -> None:
    """Every step decodes while prompts wait for memory."""
    simulation = Simulation(kv_bytes=room_for(LLAMA, 2, 1024))
    for n in range(2):
        simulation.at(0.0, ask(n, prompt(n, 600), 300))
    simulation.run(until=2.0)
    for n in range(2, 40):
        simulation.at(2.0, ask(n, prompt(n, 600), 5))
    simulation.step()
    while all(simulation.lives[n].end is None for n in range(2)):
        plan = simulation.step()
        assert plan.decode
        assert plan.chunk is None
    simulation.run()
    assert all(life.end is not None for life in simulation.lives.values())


@pytest.mark.parametrize("kind", KINDS)
def test_long_prompts_that_do_not_fit_together_go_one_after_the_other(kind: str) -> None:
    """The second is the shorter, and begins first."""
    facts = KINDS[kind]
    simulation = Simulation(facts, room_for(facts, 1, 8192), costs=MACHINES["slow"])
    play(simulation, [(0.0, ask(n, prompt(n, 6000 - 500 * n))) for n in range(4)])
    assert all(life.tokens == answer(n, 8) for n, life in simulation.lives.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_long_prompts_in_little_memory_all_get_their_turn(kind: str, seed: int) -> None:
    facts, arrivals = KINDS[kind], traffic(seed, requests=60, per_second=0.5, longest=6000)
    limit = room_for(facts, 2, 6400 + 512)
    simulation = Simulation(facts, limit, limit // 2, MACHINES["slow"], Faults(invalid_draws=20))
    rng = random.Random(seed)
    for n in range(20):
        simulation.at(10.0 * n, Limits(int(limit * rng.uniform(0.5, 1)), 0, limit // 3))
    play(simulation, arrivals)
    assert all(simulation.lives[m.sequence].tokens == answer(m.sequence, m.max_tokens) for _, m in arrivals)
    assert_nothing_is_left(simulation)


def states() -> dict[str, Callable[[Simulation], bool]]:
    """In which sequence 1 is cancelled: the first step after which each holds."""

    def running(simulation: Simulation) -> bool:
        return any(sequence.number == 1 for sequence in simulation.scheduler.running)

    return {
        "before the first step": lambda s: True,
        "while its grammar is compiled": lambda s: 1 in s.runner.compiling,
        "while it waits": lambda s: 1 in s.runner.known and not s.runner.compiling,
        "while it is taken in": lambda s: 1 in s.runner.prefilling,
        "when it has joined": lambda s: running(s) and s.runner.batch[1].is_new,
        "before its first token": lambda s: running(s) and not s.runner.batch[1].is_new and not s.lives[1].tokens,
        "while it is decoded": lambda s: len(s.lives[1].tokens) >= 5,
        "when it has to begin again": lambda s: bool(s.lives[1].tokens) and not running(s) and s.lives[1].end is None,
        "when it has ended": lambda s: s.lives[1].end is not None,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", states())
def test_cancel_in_every_state_leaves_nothing_behind_and_the_others_alone(kind: str, state: str) -> None:
    facts = KINDS[kind]
    begins_again = "begin again" in state
    limit = room_for(facts, 3, 4096 + 256) if begins_again else AMPLE
    simulation = Simulation(facts, limit, faults=Faults(invalid_draws=50 if begins_again else 0))
    simulation.at(0.0, ask(0, prompt(0, 400), 60))
    simulation.at(0.0, ask(1, prompt(1, 4000), 60, "a grammar" if "grammar" in state else None))
    simulation.at(0.0, ask(2, prompt(2, 30), 60))
    if state == "before the first step":
        simulation.at(0.0, Cancel(1))
    else:
        while not (simulation.lives and states()[state](simulation)):
            simulation.step()
            assert simulation.scheduler.has_work, f"sequence 1 never was in the state: {state}"
        simulation.at(simulation.now, Cancel(1))
    told = len(simulation.lives[1].tokens) if simulation.lives else 0
    simulation.run()
    simulation.at(simulation.now, ask(3, prompt(3, 300)))
    simulation.run()
    assert len(simulation.lives[1].tokens) == told
    assert simulation.lives[3].tokens == answer(3, 8)
    assert simulation.lives[0].tokens == answer(0, 60)
    assert simulation.lives[2].tokens == answer(2, 60)
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("steps", range(1, 12))
def test_request_after_the_only_one_was_cancelled_is_answered(steps: int) -> None:
    simulation = Simulation()
    simulation.at(0.0, ask(0, prompt(0, 600), 60))
    for _ in range(steps):
        simulation.step()
    simulation.at(simulation.now, Cancel(0))
    simulation.at(simulation.now, ask(1, prompt(1, 600)))
    simulation.run()
    assert simulation.lives[1].tokens == answer(1, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_that_are_cancelled_or_fail_at_any_moment_harm_no_other(kind: str) -> None:
    facts, arrivals = KINDS[kind], traffic(seed=5, requests=200, per_second=60)
    simulation = Simulation(facts, room_for(facts, 6, 2048), room_for(facts, 2, 2048), faults=Faults(30, failed=4))
    rng = random.Random(6)
    for seconds, message in arrivals:
        if rng.random() < 0.4:
            simulation.at(seconds + rng.expovariate(1.0), Cancel(message.sequence))
    play(simulation, arrivals)
    ends = {life.end for life in simulation.lives.values()}
    assert ends == {"stop", "length", "cancelled", "staged"}
    for _, message in arrivals:
        life = simulation.lives[message.sequence]
        whole = answer(message.sequence, message.max_tokens)
        assert life.tokens == whole[: len(life.tokens)]
        assert life.end in ("cancelled", "staged") or life.tokens == whole
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("seed", range(15))
def test_any_machine_under_any_traffic_answers_everyone(seed: int) -> None:
    rng = random.Random(seed)
    facts, costs = rng.choice([*KINDS.values()]), rng.choice([*MACHINES.values()])
    longest = rng.choice([300, 1500, 6000])
    limit = room_for(facts, rng.choice([1, 2, 3, 8, 70]), longest + 700)
    faults = Faults(rng.choice([0, 20, 200]), rng.choice([0, 5]), rng.randint(1, 5), rng.choice([1, 1, 3]))
    simulation = Simulation(facts, limit, int(limit * rng.random()), costs, faults)
    arrivals = traffic(seed, 40, rng.choice([1, 20, 300]), longest)
    for seconds, message in arrivals:
        if rng.random() < 0.3:
            simulation.at(seconds + rng.expovariate(rng.choice([0.3, 3, 100])), Cancel(message.sequence))
    for _ in range(rng.choice([0, 10])):
        lower = max(room_for(facts, 1, longest + 700), int(limit * rng.random()))
        simulation.at(2 * arrivals[-1][0] * rng.random(), Limits(lower, 0, int(limit * rng.random())))
    play(simulation, arrivals)
    for _, message in arrivals:
        life, whole = simulation.lives[message.sequence], answer(message.sequence, message.max_tokens)
        assert life.tokens == whole[: len(life.tokens)]
        assert life.end in ("cancelled", "staged") or life.tokens == whole
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("tokens_per_step", [2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_step_may_give_a_sequence_several_tokens_and_none_behind_its_end(kind: str, tokens_per_step: int) -> None:
    facts, arrivals = KINDS[kind], traffic(seed=7, requests=60, per_second=30)
    limit = room_for(facts, 4, 2048)
    simulation = play(Simulation(facts, limit, limit, faults=Faults(tokens_per_step=tokens_per_step)), arrivals)
    assert all(simulation.lives[m.sequence].tokens == answer(m.sequence, m.max_tokens) for _, m in arrivals)
    assert_nothing_is_left(simulation)


@pytest.mark.parametrize("kind", KINDS)
def test_same_messages_times_and_outcomes_give_the_same_plans(kind: str) -> None:
    facts = KINDS[kind]

    def plans() -> list[bytes]:
        simulation = Simulation(facts, room_for(facts, 5, 2048), room_for(facts, 2, 2048), faults=Faults(20, failed=2))
        return play(simulation, traffic(seed=8, requests=80, per_second=40)).plans

    first = plans()
    assert len(first) > 500
    assert first == plans()


def test_plans_survive_the_wire_and_a_recorded_run_can_be_planned_again_without_its_model(babbler: Path) -> None:
    """One scheduler has the real runner behind encoded plans; another gets the outcomes of that runner."""
    model: nn.Module = load(babbler)
    messages = [
        Submit(n, prompt(n % 3, 40 * n + 20), 12, [END], SamplingParams(seed=n, temperature=0.8, top_p=0.9), logprobs=1)
        for n in range(8)
    ]
    runner = Runner(model, Path("tokenizer.json"))
    first, again = (Scheduler(runner.facts, 2**30, 2**24, 0.1) for _ in range(2))
    for message in messages:
        first.submit(message, 0.0)
        again.submit(message, 0.0)
    tokens: dict[int, list[int]] = {}
    while first.has_work:
        plan = msgspec.msgpack.encode(first.plan(0.0))
        outcome = msgspec.msgpack.encode(runner.run(msgspec.msgpack.decode(plan, type=Plan)))
        assert msgspec.msgpack.encode(again.plan(0.0)) == plan
        events = first.note(msgspec.msgpack.decode(outcome, type=Outcome))
        assert again.note(msgspec.msgpack.decode(outcome, type=Outcome)) == events
        collect(events, tokens)
    core = EngineCore(model)
    for message in messages:
        core.submit(message)
    alone: dict[int, list[int]] = {}
    while core.has_work:
        collect(core.step(), alone)
    assert tokens == alone


def collect(events: list[UpMessage], tokens: dict[int, list[int]]) -> None:
    for event in events:
        if isinstance(event, Step):
            for sequence, token in zip(event.sequences, event.tokens, strict=True):
                tokens.setdefault(sequence, []).append(token)
