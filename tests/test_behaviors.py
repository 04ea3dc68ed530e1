"""Behaviour cleaning against an oracle that does what kernels/behaviors.h says, step by step."""

import numpy as np
import pytest
from behaviors_oracle import AD, CLICK, CONTENT, CONVERSION, DAY, EXPOSURE, NOW, clean_oracle

from genrecall import kernels


def clean(events, request_time=NOW, **options):
    columns = np.array(events, np.int64).reshape(-1, 4).T
    got = kernels.clean_behaviors(*columns, request_time, **options)
    assert [got[k].dtype for k in got] == [np.int64, np.int32, np.int32, np.int64]
    return list(zip(*(got[k].tolist() for k in ("item", "action", "domain", "time")), strict=True))


def random_events(rng, length, wild=True):
    """Few items and a coarse clock, so that ties, repeats and attributions are common."""
    low = -1 if wild else 0
    span = int(rng.choice([10, 3 * DAY, 40 * DAY]))
    return list(
        zip(
            rng.integers(low, rng.integers(1, 12), length).tolist(),
            rng.integers(low, 4 if wild else 3, length).tolist(),
            rng.integers(low, 3 if wild else 2, length).tolist(),
            (NOW + rng.integers(-span, span // 4 if wild else 1, length)).tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_oracle_on_random_users(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        events = random_events(rng, int(rng.integers(0, 90)))
        max_events = int(rng.integers(1, 40))
        options = {
            "max_events": max_events,
            "block": int(rng.integers(1, max_events + 1)),
            "actions": int(rng.integers(0, 8)) if rng.random() < 0.3 else 0b110,
            "domains": int(rng.integers(0, 4)) if rng.random() < 0.3 else 0b11,
            "attribution_window_s": int(rng.choice([0, 5, DAY, 7 * DAY])),
            "repeat_window_s": int(rng.choice([0, 5, DAY])),
        }
        assert clean(events, **options) == clean_oracle(events, NOW, **options)


def test_a_long_history():
    events = random_events(np.random.default_rng(0), 1500)
    assert clean(events) == clean_oracle(events, NOW)
    n = 200_000
    time = np.random.default_rng(1).permutation(n) + 1
    got = clean(np.stack([np.arange(n), np.full(n, CLICK), np.full(n, AD), time], axis=1))
    assert [e[3] for e in got] == list(range(n - 63, n + 1))


def test_no_events():
    assert clean([]) == []
    assert (
        clean([(1, CLICK, AD, NOW + 1), (2, CONVERSION, AD, NOW + DAY)]) == []
    )  # all in the future


def test_the_edges_of_validity():
    good = (5, CLICK, AD, NOW)
    bad = [
        (-1, CLICK, AD, NOW),
        (5, -1, AD, NOW),
        (5, 3, AD, NOW),
        (5, 2**31 - 1, AD, NOW),
        (5, CLICK, 2, NOW),
        (5, CLICK, -(2**31), NOW),
        (5, CLICK, AD, 0),
        (5, CLICK, AD, -(2**63)),
        (5, CLICK, AD, NOW + 1),
        (5, EXPOSURE, AD, NOW),  # switched off by default
    ]
    assert clean([*bad, good, *bad]) == [good]
    assert clean([(0, CLICK, AD, 1)], request_time=1) == [(0, CLICK, AD, 1)]
    last = 2**63 - 1
    far = [(last, CLICK, AD, 1), (last, CONVERSION, AD, last)]
    assert clean(far, request_time=last, attribution_window_s=last) == far[1:]
    assert clean(far, request_time=last) == far


def test_a_conversion_absorbs_its_clicks_across_domains():
    old = (7, CLICK, AD, NOW - 8 * DAY)
    clicks = [(7, CLICK, AD, NOW - 3 * DAY), (7, CLICK, CONTENT, NOW - 2 * DAY + 1)]
    other = (8, CLICK, AD, NOW - DAY)
    conversion = (7, CONVERSION, AD, NOW)
    assert clean([old, *clicks, other, conversion]) == [old, other, conversion]


def test_the_first_conversion_absorbs_the_clicks_before_it():
    events = [
        (7, CLICK, AD, NOW - 50),
        (7, CLICK, AD, NOW - 40),
        (7, CONVERSION, AD, NOW - 30),
        (7, CONVERSION, AD, NOW - 20),
        (7, CONVERSION, AD, NOW - 10),
    ]
    assert clean(events, repeat_window_s=0) == events[2:]


def test_the_attribution_window_is_inclusive():
    conversion = (7, CONVERSION, AD, NOW)
    inside, outside = (7, CLICK, AD, NOW - 100), (7, CLICK, AD, NOW - 101)
    assert clean([inside, conversion], attribution_window_s=100) == [conversion]
    assert clean([outside, conversion], attribution_window_s=100) == [outside, conversion]


def test_events_of_one_second_keep_their_order():
    click, conversion = (7, CLICK, AD, NOW), (7, CONVERSION, AD, NOW)
    assert clean([click, conversion]) == [conversion]
    assert clean([conversion, click]) == [conversion, click]  # the click came after
    same = [(i, CLICK, AD, NOW) for i in (3, 1, 2)]
    assert clean(same) == same


def test_a_repeat_is_measured_from_the_kept_event():
    times = [NOW - 100 + t for t in (0, 6, 10, 11, 21, 22)]
    events = [(7, CLICK, AD, t) for t in times]
    got = clean(events, repeat_window_s=10)
    assert [e[3] for e in got] == [times[0], times[3], times[5]]
    both = [(7, CLICK, AD, NOW - 1), (7, CONVERSION, CONTENT, NOW)]  # another action is no repeat
    assert clean(both, attribution_window_s=0) == both


@pytest.mark.parametrize("max_events,block", [(1, 1), (10, 1), (10, 4), (10, 10), (16, 8)])
def test_the_oldest_go_in_whole_blocks(max_events, block):
    for n in range(60):
        events = [(i, CLICK, AD, 1 + i) for i in range(n)]
        got = clean(events, max_events=max_events, block=block)
        assert got == events[n - len(got) :]
        dropped = n - len(got)
        assert dropped % block == 0 and len(got) <= max_events
        assert dropped == 0 or len(got) > max_events - block


@pytest.mark.parametrize("seed", range(10))
def test_appending_an_event_takes_nothing_back_but_absorbed_clicks(seed):
    rng = np.random.default_rng(100 + seed)
    history = sorted(random_events(rng, 80, wild=False), key=lambda e: e[3])
    before = []
    for n, event in enumerate(history, 1):
        after = clean(history[:n], max_events=1000)
        absorbed = [e for e in before if e not in after]
        assert after in ([e for e in before if e in after] + extra for extra in ([], [event]))
        for click in absorbed:
            assert event[:2] == (click[0], CONVERSION) and click[1] == CLICK
        before = after


@pytest.mark.parametrize("seed", range(10))
def test_cleaning_what_is_clean_changes_nothing(seed):
    """Nor the beginning of it: training cleans the line that its samples are cut from."""
    rng = np.random.default_rng(200 + seed)
    line = clean(random_events(rng, 80, wild=False), max_events=1000)
    for n in range(len(line) + 1):
        assert clean(line[:n], max_events=1000) == line[:n]


def test_errors_name_the_input():
    def refuse(message, *args, **options):
        with pytest.raises(ValueError, match=message):
            kernels.clean_behaviors(*args, NOW, **options)

    one = [1]
    refuse(r"action has shape \[2\]: expected \[1\]", one, [1, 1], one, one)
    refuse(r"time: expected rank 1, got shape \[1, 1\]", one, one, one, [[1]])
    refuse(r"item: expected integers, got dtype float64", [1.5], one, one, one)
    refuse(r"action has value 2147483648: expected", one, [2**31], one, one)
    refuse(r"max_events = 0: expected >= 1", one, one, one, one, max_events=0)
    refuse(r"block = 0: expected 1..max_events = 64", one, one, one, one, block=0)
    refuse(r"block = 9: expected 1..max_events = 8", one, one, one, one, max_events=8, block=9)
