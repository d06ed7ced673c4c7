"""Fairness of the line for places, by staged events: no processes, and times that the tests choose."""

import math
from dataclasses import replace

import pytest

from mlx_manager.mlx_server.engine.messages import Device
from mlx_manager.mlx_server.models.budget import Budget, Holding
from mlx_manager.mlx_server.models.places import IDLE_SECONDS, TURN_SECONDS, Granted, NeverFits, Place, Places, Wait

MB = 2**20


class Stage:
    """Models of 10 MB each, in a budget of so many; `now` is moved by the test."""

    def __init__(self, max_models: int, *, limit_bytes: int = 1000 * MB) -> None:
        self.places = Places(Budget(limit_bytes, max_models, 0))
        self.now = 0.0
        self.pinned: set[str] = set()
        self.loaded: dict[str, float] = {}
        self.granted: list[str] = []
        self.refused: list[str] = []
        self.wait_until = math.inf

    def settle(self) -> None:
        while not isinstance(step := self.places.decide(self._holdings(), self.now), Wait):
            if isinstance(step, NeverFits):
                self.refused.append(step.model_id)
                continue
            assert isinstance(step, Granted)
            self.granted.append(step.model_id)
            for victim in step.victims:
                self.places.vacate(victim.model_id)
                del self.loaded[victim.model_id]
        self.wait_until = step.until

    def ask(self, model_id: str, size_bytes: int = 10 * MB) -> None:
        """A request that waits for the model, and a load that knows its size."""
        self.places.join(model_id)
        self.places.claim(model_id, size_bytes)
        self.settle()

    def load(self, model_id: str, seconds: float = 0.0) -> None:
        """The load of a model with a place ends, and those who waited get leases."""
        self.now += seconds
        self.places.occupy(model_id, self.now)
        self.loaded[model_id] = self.now
        self.settle()

    def come_in(self, model_id: str) -> None:
        self.places.leave(model_id)
        self.settle()

    def at(self, now: float) -> None:
        self.now = now
        self.settle()

    def _holdings(self) -> list[Holding]:
        return [Holding(one, 10 * MB, used, one not in self.pinned) for one, used in self.loaded.items()]


def stage_with(*model_ids: str, max_models: int) -> Stage:
    """Models that are loaded and idle, the first of them for the longest time."""
    stage = Stage(max_models)
    for number, model_id in enumerate(model_ids):
        stage.now = float(number)
        stage.ask(model_id)
        stage.load(model_id)
        stage.come_in(model_id)
    stage.granted.clear()
    stage.at(100.0)
    return stage


def test_idle_model_makes_room_at_once() -> None:
    stage = stage_with("a", max_models=1)
    stage.ask("b")
    assert stage.granted == ["b"]
    assert not stage.loaded


def test_model_goes_when_its_running_requests_have_ended() -> None:
    stage = stage_with("a", max_models=1)
    leases = [stage.places.begin("a") for _ in range(2)]
    stage.ask("b")
    for lease in leases:
        assert stage.granted == []
        stage.places.end(lease, stage.now)
        stage.settle()
    assert stage.granted == ["b"]


def test_model_takes_no_new_requests_once_its_turn_is_over_and_another_waits() -> None:
    stage = Stage(max_models=1)
    stage.ask("a")
    stage.load("a")
    stage.come_in("a")
    lease = stage.places.begin("a")
    stage.ask("b")
    assert not stage.places.is_closed("a")
    assert stage.wait_until == TURN_SECONDS
    stage.at(stage.wait_until)
    assert stage.places.is_closed("a")
    stage.places.end(lease, stage.now)
    stage.settle()
    assert stage.granted == ["a", "b"]


def test_model_between_two_requests_of_a_client_keeps_its_turn() -> None:
    stage = Stage(max_models=1)
    stage.ask("a")
    stage.load("a")
    stage.come_in("a")
    stage.ask("b")
    assert stage.wait_until == pytest.approx(IDLE_SECONDS)
    stage.at(IDLE_SECONDS / 2)
    lease = stage.places.begin("a")
    stage.places.end(lease, stage.now)
    stage.at(IDLE_SECONDS)
    assert stage.granted == ["a"]
    stage.at(2 * IDLE_SECONDS)
    assert stage.granted == ["a", "b"]


def test_turn_is_as_long_as_the_load_was() -> None:
    stage = Stage(max_models=1)
    stage.ask("a")
    stage.load("a", seconds=30)
    stage.come_in("a")
    stage.places.begin("a")
    stage.ask("b")
    stage.at(30 + 29)
    assert not stage.places.is_closed("a")
    stage.at(30 + 30)
    assert stage.places.is_closed("a")


def test_loaded_model_first_serves_those_who_waited_for_it() -> None:
    stage = Stage(max_models=1)
    stage.ask("a")
    stage.ask("b")
    stage.load("a")
    stage.at(IDLE_SECONDS + 0.1)  # the request for it has not come in yet
    assert stage.granted == ["a"]
    stage.come_in("a")
    assert stage.granted == ["a", "b"]


def test_models_are_served_in_the_order_in_which_they_were_asked_for() -> None:
    stage = Stage(max_models=1)
    stage.ask("a")
    stage.places.join("c")  # its files are still being read
    stage.ask("b")
    stage.places.claim("c", 10 * MB)
    for model_id in ("a", "c", "b"):
        stage.load(model_id)
        stage.come_in(model_id)
        stage.at(stage.now + TURN_SECONDS)
    assert stage.granted == ["a", "c", "b"]


def test_request_for_a_closed_model_waits_behind_those_before_it() -> None:
    stage = stage_with("a", max_models=1)
    lease = stage.places.begin("a")
    stage.ask("b")
    stage.places.join("a")
    stage.ask("c")
    stage.places.end(lease, stage.now)
    stage.settle()
    stage.places.claim("a", 10 * MB)
    for model_id in ("b", "a", "c"):
        stage.load(model_id)
        stage.come_in(model_id)
        stage.at(stage.now + TURN_SECONDS)
    assert stage.granted == ["b", "a", "c"]


def test_closed_model_opens_again_when_nothing_waits_any_more() -> None:
    stage = stage_with("a", max_models=1)
    stage.places.begin("a")
    stage.ask("b")
    assert stage.places.closed() == {"a"}
    assert stage.places.leave("b")
    stage.places.withdraw("b")
    stage.settle()
    assert stage.places.closed() == set()


def test_as_few_as_possible_are_closed_and_the_next_one_when_the_first_does_not_end() -> None:
    stage = stage_with("a", "b", max_models=2)
    stage.places.begin("a")
    short = stage.places.begin("b")
    stage.ask("c")
    assert stage.places.closed() == {"a"}
    stage.at(stage.wait_until)
    assert stage.places.closed() == {"a", "b"}
    stage.places.end(short, stage.now)
    stage.settle()
    assert stage.granted == ["c"]
    assert set(stage.loaded) == {"a"}
    assert stage.places.closed() == set()


def test_model_that_pinned_ones_leave_no_room_for_is_refused_at_once() -> None:
    stage = stage_with("a", max_models=1)
    stage.places.begin("a")
    stage.ask("b")
    assert stage.refused == []
    stage.pinned.add("a")
    stage.settle()
    assert stage.refused == ["b"]
    assert stage.places.closed() == set()


def test_model_larger_than_the_budget_is_refused_and_the_next_in_line_is_served() -> None:
    stage = Stage(max_models=2, limit_bytes=50 * MB)
    stage.ask("huge", 60 * MB)
    stage.ask("a")
    assert (stage.refused, stage.granted) == (["huge"], ["a"])


def test_memory_is_waited_for_as_places_are() -> None:
    stage = Stage(max_models=9, limit_bytes=25 * MB)
    for model_id in ("a", "b"):
        stage.ask(model_id)
        stage.load(model_id)
        stage.come_in(model_id)
    leases = [stage.places.begin("a"), stage.places.begin("b")]
    stage.at(10.0)
    stage.ask("large", 20 * MB)
    for lease in leases:
        assert stage.granted == ["a", "b"]
        stage.places.end(lease, stage.now)
        stage.settle()
    assert stage.granted == ["a", "b", "large"]


def test_load_that_fails_makes_room_for_the_next_in_line() -> None:
    stage = Stage(max_models=1)
    stage.ask("broken")
    stage.ask("b")
    assert stage.granted == ["broken"]
    stage.places.vacate("broken")
    stage.settle()
    assert stage.granted == ["broken", "b"]


def test_lease_that_outlives_its_model_does_not_count_for_the_next_load_of_it() -> None:
    stage = stage_with("a", max_models=1)
    lost = stage.places.begin("a")
    stage.places.vacate("a")
    del stage.loaded["a"]
    stage.ask("a")
    stage.load("a")
    stage.come_in("a")
    running = stage.places.begin("a")
    stage.places.end(lost, stage.now)
    stage.at(stage.now + TURN_SECONDS)
    stage.ask("b")
    assert stage.granted == ["a"]
    stage.places.end(running, stage.now)
    stage.settle()
    assert stage.granted == ["a", "b"]


def test_wait_is_expected_to_be_longer_behind_others() -> None:
    stage = stage_with("a", max_models=1)
    stage.places.begin("a")
    stage.ask("b")
    stage.ask("c")
    assert stage.places.expected_wait_seconds("b") == 0
    assert stage.places.expected_wait_seconds("c") == 2 * TURN_SECONDS
    assert stage.places.expected_wait_seconds("d") == 4 * TURN_SECONDS


def test_one_model_at_a_time_is_let_in_until_the_memory_of_the_gpu_is_known() -> None:
    stage = Stage(max_models=4, limit_bytes=5 * MB)
    stage.places.budget = replace(stage.places.budget, device_defaults=frozenset({"max_memory_gb"}), knows_device=False)
    stage.ask("a")
    stage.ask("b")
    assert stage.granted == ["a"]
    stage.places.budget = stage.places.budget.on_device(Device("cuda", 100 * MB))
    stage.settle()
    assert stage.granted == ["a", "b"]


def test_two_clients_that_take_turns_cause_few_loads() -> None:
    """Each asks for its own model again as soon as it is answered, after 50 ms; loads take a second."""
    stage = Stage(max_models=1)
    answers = {"a": 0, "b": 0}
    running: dict[str, Place] = {}
    loads_end: dict[str, float] = {}
    for model_id in answers:
        stage.ask(model_id)
    while stage.now < 60:
        stage.at(stage.now + 0.05)
        loads_end |= {one: stage.now + 1 for one in stage.granted[-1:] if stage.places.reserved() and not loads_end}
        for model_id in [one for one, end in loads_end.items() if end <= stage.now]:
            del loads_end[model_id]
            stage.load(model_id)
        for model_id in answers:
            if model_id in running:
                stage.places.join(model_id)
                stage.places.end(running.pop(model_id), stage.now)
                answers[model_id] += 1
            if model_id in stage.loaded and not stage.places.is_closed(model_id):
                running[model_id] = stage.places.begin(model_id)
                stage.come_in(model_id)
            elif model_id not in stage.loaded and not stage.places.has_place(model_id):
                stage.places.claim(model_id, 10 * MB)
    assert min(answers.values()) > 300
    assert len(stage.granted) < sum(answers.values()) / 20
