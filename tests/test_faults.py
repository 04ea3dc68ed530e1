"""What a request and a branch can do wrong: refused by name, or contained.

Malformed input goes through a plain session; faults inside the generative branch through the C++
host, with no Python in the process.
"""

import re

import cc_host_util
import fault_library
import numpy as np
import pytest
import tensorflow as tf
import tiny_model

from genrecall.graphs.artefacts import Artefacts
from genrecall.graphs.branch import BranchAnswer
from genrecall.graphs.build import build_recall_graph
from genrecall.graphs.loaded import LoadedModel
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.recall_graph import RecallGraph

DEADLINE_MS = 1000
RESERVE_MS = 100  # of the deadline, to merge and answer on a machine that does other things, too
K, W, MAX_W = (tiny_model.OPTIONS[n] for n in ("num_items", "beam_width", "max_beam_width"))


@pytest.fixture(scope="module")
def model(exported):
    with LoadedModel(exported) as model:
        yield model


@pytest.fixture
def user(tiny):
    return tiny_model.random_users(tiny, 1, seed=21)


# input, value, what the message says
REFUSED = [
    ("behavior_length", [25], r"behavior_length\[0\] = 25: expected 0..T = 24"),
    ("behavior_length", [-1], r"behavior_length\[0\] = -1: expected 0..T = 24"),
    ("exclude_length", [5], r"exclude_length\[0\] = 5: expected 0..E = 4"),
    ("exclude_length", [-2], r"exclude_length\[0\] = -2: expected 0..E = 4"),
    ("beam_width", [0], rf"beam_width\[0\] = 0: expected 1..max_beam_width = {MAX_W}"),
    ("beam_width", [-1], rf"beam_width\[0\] = -1: expected 1..max_beam_width = {MAX_W}"),
    ("beam_width", [10**6], rf"beam_width\[0\] = 1000000: expected 1..max_beam_width = {MAX_W}"),
    ("num_items", [0], rf"num_items\[0\] = 0: expected 1..max_items = {K}"),
    ("num_items", [K + 1], rf"num_items\[0\] = {K + 1}: expected 1..max_items = {K}"),
    ("priority", [1001], r"priority\[0\] = 1001: expected -1000..max_priority = 1000"),
    ("request_time", [-1], r"request_time\[0\] = -1: expected >= 0"),
    ("age", [np.nan], r"age\[0\] = nan: expected a finite number, or -inf for a missing one"),
    ("age", [np.inf], r"age\[0\] = inf: expected a finite number, or -inf for a missing one"),
]


@pytest.mark.parametrize("name, value, message", REFUSED)
def test_a_malformed_value_is_refused_by_name(model, user, name, value, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model({**user, name: value})
    assert not model(user)["request_status"].any(), "the model lives on"


@pytest.mark.parametrize("name, value, message", REFUSED)
def test_a_malformed_row_leaves_its_neighbours(model, tiny, name, value, message):
    users = tiny_model.random_users(tiny, 3, seed=22)
    users.setdefault(
        name, np.array({"beam_width": [W] * 3, "num_items": [K] * 3}.get(name, [0] * 3))
    )
    good = model(users)
    users[name] = np.array(users[name])
    users[name][1] = value[0]
    answer = model(users)
    assert answer["request_status"].tolist() == [0, 3, 0]
    assert answer["num_items"].tolist() == [K, 0, K]
    assert (answer["item_id"][1] == -1).all() and (answer["branch_status"][1] == 3).all()
    for b in (0, 2):
        for output in good:
            np.testing.assert_array_equal(answer[output][b], good[output][b], err_msg=output)


INPUTS = "user_id behavior_item behavior_action behavior_domain behavior_time behavior_length"
INPUTS += " request_time exclude_item exclude_length beam_width num_items deadline_ms priority seed"
INPUTS = (INPUTS + " gender age city").split()


def test_the_list_of_inputs_is_whole(model):
    assert set(INPUTS) == set(model.signatures["serving_default"].inputs)


def full(tiny, rows):
    """A request with every input in it."""
    options = {"beam_width": W, "num_items": K, "deadline_ms": 0, "priority": 0, "seed": 0}
    users = tiny_model.random_users(tiny, rows, seed=23)
    return {**users, **{n: np.full(rows, v, np.int32) for n, v in options.items()}}


@pytest.mark.parametrize("name", INPUTS)
def test_every_input_of_another_dtype_rank_or_size(exported, tiny, name):
    """Through the C++ host, which checks nothing before the graph does."""
    good = {n: tf.constant(v) for n, v in full(tiny, 2).items()}
    value = good[name]
    other = tf.strings.as_string(value) if value.dtype != tf.string else tf.ones([2])
    requests = [
        {**good, name: other},
        {**good, name: tf.expand_dims(value, 0)},
        {**good, name: tf.concat([value, value[:1]], 0)},
        good,
    ]
    answers = [a for a, _ in cc_host_util.run_many(str(exported), requests)]
    for answer, message in zip(
        answers,
        (
            "",
            rf"{name}: got shape \[1,2(,\d+)?\], expected \[B",
            rf"{name}: got shape \[3(,\d+)?\], expected \[B = 2|expected \[B = 3",
        ),
        strict=False,
    ):
        assert isinstance(answer, cc_host_util.HostError), message
        assert answer.code == 3, answer
        assert re.search(message, str(answer)), answer
    assert answers[-1]["num_items"].tolist() == [K, K]


def test_an_empty_batch_is_refused(model, tiny):
    empty = {name: value[:0] for name, value in full(tiny, 1).items()}
    for inputs in (empty, {"user_id": np.zeros([0], np.int64)}):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="user_id: expected at least one row"
        ):
            model(inputs)


def test_empty_and_unknown_behaviours_are_answered(model, tiny, user):
    """No history, no room for one, and one of items not in the index: all the same prompt."""
    none = model({**user, "behavior_length": [0]}, "explain")
    width = {n: v[:, :0] for n, v in user.items() if n.startswith("behavior_") and v.ndim == 2}
    no_room = model({**user, **width, "behavior_length": [0]}, "explain")
    unknown = model({**user, "behavior_item": np.full((1, 24), 5)}, "explain")
    negative = model({**user, "behavior_item": np.full((1, 24), -7)}, "explain")
    for answer in (none, no_room, unknown, negative):
        assert answer["num_items"] == K and not answer["branch_status"].any()
        for name in none:
            np.testing.assert_array_equal(answer[name], none[name], err_msg=name)


def test_behaviours_that_make_no_sense_are_dropped(model, user):
    """Unknown actions and domains, times before 1970 or after the request."""
    user["behavior_length"][:] = 12
    clean = model({n: v for n, v in user.items()}, "explain")
    for name, value in [
        ("behavior_action", 7),
        ("behavior_domain", -1),
        ("behavior_time", 0),
        ("behavior_time", 2**60),
    ]:
        longer = {n: v.copy() for n, v in user.items()}
        longer["behavior_length"][:] = 13
        longer[name][0, 12] = value
        answer = model(longer, "explain")
        np.testing.assert_array_equal(answer["prompt_token"], clean["prompt_token"], err_msg=name)


def test_features_nobody_has_heard_of_are_missing(model, user):
    missing = model(
        {n: v for n, v in user.items() if n not in ("gender", "city", "age")}, "explain"
    )
    odd = {**user, "gender": [b"\xff\x00"], "city": [2**62], "age": [-np.inf]}
    np.testing.assert_array_equal(model(odd, "explain")["prompt_token"], missing["prompt_token"])


def test_exclusions_of_all_kinds_are_harmless(model, tiny, user):
    everything = np.concatenate([tiny.item_id, [-1, 5, 2**62]])[None]
    answer = model({**user, "exclude_item": everything, "exclude_length": [everything.shape[1]]})
    assert answer["num_items"] == 0 and not answer["branch_status"].any()


class _Faulty(tf.Module):
    """A branch with a fault in it, chosen by the request's seed."""

    def __init__(self, inner):
        super().__init__(name=inner.name)
        self.inner = inner

    def detail_specs(self):
        return self.inner.detail_specs()

    def recall(self, request, k):
        answer = self.inner.recall(request, k)
        score = fault_library.ops().genrecall_test_fault(answer.score, request.seed[0])
        return BranchAnswer(answer.item_id, score, answer.status, answer.details)


@pytest.fixture(scope="module")
def faulty(tiny, exported, tmp_path_factory):
    """The exported model, with _Faulty around its generative branch."""
    artefacts = Artefacts.load(tiny.checkpoint, tiny.index)
    whole = build_recall_graph(
        artefacts,
        exported / "assets" / "model.gguf",
        RecallOptions(**tiny_model.OPTIONS, reply_reserve_ms=RESERVE_MS),
        engine={"num_threads": 1},
    )
    generative, popular = whole.branches
    graph = RecallGraph(
        whole.index,
        levels=len(tiny.level_sizes),
        facets=tiny_model.NUM_FACETS,
        branches=[_Faulty(generative), popular],
        features=artefacts.prompt.features,
        options=whole.options,
    )
    folder = tmp_path_factory.mktemp("faulty") / "1"
    tf.saved_model.save(graph, str(folder), signatures=graph.signatures())
    return folder


def test_faults_inside_the_generative_branch_without_python(faulty, user):
    """An op that errs, blocks for 10 s, hangs, answers NaN: popular items, in time, and why."""
    kinds = ["NONE", "ERROR", "NAN", "BLOCK", "HANG", "BLOCK", "HANG", "NONE"]
    status = {"NONE": 0, "ERROR": 9, "NAN": 13, "BLOCK": 4, "HANG": 4}
    requests = [
        {**user, "seed": np.array([getattr(fault_library, kind)], np.int32)} for kind in kinds
    ]
    deadline = {"deadline_ms": np.array([DEADLINE_MS], np.int32)}
    answers = cc_host_util.run_many(
        str(faulty),
        [requests[0]] + [{**r, **deadline} for r in requests],  # the first finds everything cold
        libraries=[fault_library.path()],
        timeout_s=120,
    )
    healthy = answers[0][0]
    assert (healthy["branch_mask"] & 1).any()
    took = {}
    for kind, (answer, elapsed_ms) in zip(kinds, answers[1:], strict=True):
        assert not isinstance(answer, cc_host_util.HostError), answer
        took.setdefault(kind, []).append(elapsed_ms)
        assert answer["branch_status"].tolist() == [[status[kind], 0]], kind
        assert not answer["request_status"].any() and answer["num_items"] == K
        if kind == "NONE":
            np.testing.assert_array_equal(answer["item_id"], healthy["item_id"])
        else:
            assert (answer["branch_mask"] == 2).all(), "the popular branch's items, all of them"
            assert np.isfinite(answer["score"]).all()
    # What else the machine does may hold up one reply of a kind, by 90 ms as seen, but not both.
    for kind, elapsed_ms in took.items():
        assert min(elapsed_ms) < DEADLINE_MS, f"{kind}: replies after {elapsed_ms} ms"
        assert max(elapsed_ms) < 2 * DEADLINE_MS, f"{kind}: replies after {elapsed_ms} ms"


def test_a_failed_branch_is_explained(faulty, user):
    """`explain` keeps its outputs' ranks; what the branch would have told is empty."""
    fault_library.ops()
    with LoadedModel(faulty) as model:
        answer = model({**user, "seed": [fault_library.ERROR]}, "explain")
        good = model({**user, "seed": [fault_library.NONE]}, "explain")
    assert answer["branch_status"].tolist() == [[9, 0]]
    assert answer["beam_semantic_id"].shape == (1, 0, 4) and answer["prompt_token"].shape == (1, 0)
    assert (answer["source"] == 1).all()
    assert {n: a.ndim for n, a in answer.items()} == {n: a.ndim for n, a in good.items()}
