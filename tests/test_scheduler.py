"""The engine's policy alone: who runs how many rows in which step. Needs no model."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrecall.trtllm_bridge._engine import Scheduler

CANCELLED, DEADLINE_EXCEEDED = 1, 4


class Simulation:
    """Runs requests (prompt rows, then the rows of each later pass) to their end."""

    def __init__(self, **options):
        self.scheduler = Scheduler(**options)
        self.passes = {}  # id -> rows of the passes still to come
        self.steps = []  # [{id: rows}]
        self.finished_at = {}  # id -> step

    def submit(self, request, prompt, passes=(), priority=0):
        self.passes[request] = list(passes)
        return self.scheduler.enqueue(request, prompt, sum(passes), priority)

    def step(self):
        grants = self.scheduler.plan()
        self.steps.append(dict(grants))
        for request, _ in grants:
            if self.scheduler.rows_left_in_pass(request):
                continue
            if self.passes[request]:
                rows = self.passes[request].pop(0)
                self.scheduler.begin_pass(request, rows, sum(self.passes[request]))
            else:
                self.scheduler.remove(request)
                self.finished_at[request] = len(self.steps)
        return dict(grants)

    def run(self, limit=10000):
        while self.scheduler.waiting or self.scheduler.running:
            self.step()
            assert len(self.steps) < limit, "does not come to an end"
        return self


def test_a_full_queue_refuses_at_once():
    s = Scheduler(max_queue=2, max_running=1)
    assert s.enqueue(1, 5)
    assert s.enqueue(2, 5)
    assert not s.enqueue(3, 5)
    s.plan()  # admits 1
    assert (s.waiting, s.running) == (1, 1)
    assert s.enqueue(4, 5)
    assert not s.enqueue(5, 5)


def test_admission_is_by_priority_then_arrival():
    sim = Simulation(max_running=1)
    for request, priority in [(1, 0), (2, 0), (3, 7), (4, -1000), (5, 0)]:
        sim.submit(request, 10, priority=priority)
    sim.run()
    assert sorted(sim.finished_at, key=sim.finished_at.get) == [3, 1, 2, 5, 4]


def test_one_request_alone_takes_whole_steps():
    sim = Simulation(max_step_rows=512, prefill_chunk=128)
    sim.submit(1, 1200, [256, 512, 700])
    sim.run()
    assert [s[1] for s in sim.steps] == [512, 512, 176, 256, 512, 512, 188]


def test_a_prompt_that_arrives_later_shares_the_step_of_one_that_decodes():
    sim = Simulation()
    sim.submit(1, 100, [32, 32, 32])
    sim.step()
    sim.submit(2, 100, [32, 32, 32])
    assert sim.step() == {1: 32, 2: 100}


def test_a_narrow_request_overtakes_a_wide_one():
    sim = Simulation(max_step_rows=512, prefill_chunk=128)
    sim.submit(1, 150, [256, 512, 512])
    sim.step()
    sim.step()  # level 1: all 256 rows, nobody else is there
    assert sim.steps[-1] == {1: 256}
    sim.submit(2, 150, [5, 5, 5])
    sim.run()
    assert sim.finished_at[2] < sim.finished_at[1]
    assert all(1 in step for step in sim.steps), "the wide one moves on in every step"
    assert max(sum(step.values()) for step in sim.steps[2 : sim.finished_at[2]]) <= 128 + 128


def test_nobody_starves_under_a_stream_of_narrow_requests():
    sim = Simulation(max_step_rows=64, prefill_chunk=64)
    sim.submit(1, 64, [64, 64, 64])
    for request in range(2, 200):
        sim.submit(request, 64, priority=3)
        sim.step()
    gaps, last = [], 0
    for i, step in enumerate(sim.steps, 1):
        if 1 in step:
            gaps.append(i - last)
            last = i
    assert 1 in sim.finished_at and max(gaps) <= Scheduler.max_skipped_steps + 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 90),
            st.lists(st.integers(1, 70), max_size=3),
            st.integers(-2, 2),
            st.integers(0, 10),
        ),
        min_size=1,
        max_size=24,
    ),
    max_step_rows=st.integers(1, 80),
    prefill_chunk=st.integers(1, 40),
    max_running=st.integers(1, 12),
)
def test_every_row_runs_exactly_once_within_bounds(
    requests, max_step_rows, prefill_chunk, max_running
):
    sim = Simulation(
        max_step_rows=max_step_rows, prefill_chunk=prefill_chunk, max_running=max_running
    )
    arrivals = sorted(range(len(requests)), key=lambda r: requests[r][3])
    for request in arrivals:
        prompt, passes, priority, arrival = requests[request]
        while len(sim.steps) < arrival:
            sim.step()
        assert sim.submit(request + 1, prompt, passes, priority)
    sim.run()
    total = {request + 1: r[0] + sum(r[1]) for request, r in enumerate(requests)}
    done = dict.fromkeys(total, 0)
    skipped = dict.fromkeys(total, 0)
    for step in sim.steps:
        assert sum(step.values()) <= max_step_rows and len(step) <= max_running
        for request, rows in step.items():
            assert rows >= 1
            done[request] += rows
        for request in total:
            started = 0 < done[request] < total[request]
            skipped[request] = skipped[request] + 1 if started and request not in step else 0
            # Each of the others may be served before it once it has waited its turn.
            assert skipped[request] <= Scheduler.max_skipped_steps + max_running
    assert done == total and set(sim.finished_at) == set(total)


def test_cancelled_and_late_requests_leave_at_the_next_step():
    s = Scheduler(max_running=2)
    s.enqueue(1, 100, deadline_s=5.0)
    s.enqueue(2, 100)
    s.enqueue(3, 100, deadline_s=9.0)
    s.enqueue(4, 100)
    assert s.expire(4.9) == []
    s.plan()
    s.cancel(2)
    s.cancel(99)  # unknown: ignored
    assert s.expire(5.0) == [(1, DEADLINE_EXCEEDED, False), (2, CANCELLED, False)]
    assert (s.waiting, s.running) == (2, 0)
    assert s.expire(9.5) == [(3, DEADLINE_EXCEEDED, False)]
    assert s.plan() == [(4, 100)]
    assert (s.waiting, s.running) == (0, 1)


def test_cancelled_rows_go_to_the_others():
    sim = Simulation(max_step_rows=128, prefill_chunk=64)
    sim.submit(1, 1000)
    sim.submit(2, 1000)
    assert sim.step() == {1: 64, 2: 64}
    sim.scheduler.cancel(1)
    assert sim.scheduler.expire(0.0) == [(1, CANCELLED, False)]
    assert sim.step() == {2: 128}


def test_a_higher_priority_does_not_make_room_for_a_lower_one():
    sim = Simulation(max_step_rows=512, prefill_chunk=128)
    sim.submit(1, 100, [20], priority=-1000)
    sim.submit(2, 600, [512])
    assert sim.step() == {2: 512}
    assert sim.step() == {2: 88, 1: 100}
    assert sim.step() == {2: 512}
    assert sim.step() == {1: 20}


@pytest.mark.parametrize("priority", [-1000, -1])
def test_a_lower_priority_waits_for_room_in_the_step(priority):
    sim = Simulation(max_step_rows=10, prefill_chunk=10)
    sim.submit(1, 10, priority=priority)
    sim.submit(2, 20)
    assert sim.step() == {2: 10}
    assert sim.step() == {2: 10}
    assert sim.step() == {1: 10}
