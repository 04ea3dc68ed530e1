"""The recall graph beside an oracle without TensorFlow; its interface; what it makes of batches."""

import concurrent.futures
import dataclasses

import numpy as np
import oracle
import pytest
import tensorflow as tf
import tiny_model

from genrecall.graphs.artefacts import Artefacts
from genrecall.graphs.branch import BranchAnswer, Request
from genrecall.graphs.build import build_recall_graph
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.recall_graph import OUTPUTS, RecallGraph
from genrecall.graphs.signature import request_inputs
from genrecall.trtllm_bridge import checkpoint

K = tiny_model.OPTIONS["num_items"]
W = tiny_model.OPTIONS["beam_width"]


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.gguf"
    checkpoint.convert(tiny.checkpoint, path, "float32")
    return path


@pytest.fixture(scope="module")
def build(tiny, weights):
    artefacts = Artefacts.load(tiny.checkpoint, tiny.index)

    def build(branches=(), engine=None, **options):
        options = RecallOptions(**{**tiny_model.OPTIONS, **options})
        engine = {"num_threads": 1, **(engine or {})}
        return build_recall_graph(artefacts, weights, options, engine=engine, branches=branches)

    return build


@pytest.fixture(scope="module")
def graph(build):
    return build()


@pytest.fixture(scope="module")
def truth(tiny, weights):
    return oracle.Oracle(tiny, weights)


def ask(graph, inputs, function="serve"):
    dtypes = {i.name: i.dtype for i in graph.inputs}
    tensors = {name: tf.constant(value, dtypes[name]) for name, value in inputs.items()}
    return {name: t.numpy() for name, t in getattr(graph, function)(**tensors).items()}


def check_rows(answer, expected, index, k=K):
    """Every output of `serve` against lists of (item, score, mask)."""
    for b, items in enumerate(expected):
        n = len(items)
        assert answer["num_items"][b] == n
        assert answer["item_id"][b].tolist() == [i for i, _, _ in items] + [-1] * (k - n)
        np.testing.assert_allclose(answer["score"][b][:n], [s for _, s, _ in items], atol=1e-5)
        assert (answer["score"][b][n:] == 0).all()
        assert answer["branch_mask"][b].tolist() == [m for _, _, m in items] + [0] * (k - n)
        assert (answer["semantic_id"][b] == index.lookup(answer["item_id"][b])[0]).all()


@pytest.mark.parametrize("quotas", [{}, {"generative": 5, "popular": 3}, {"generative": 0}])
def test_equals_the_oracle(build, truth, quotas):
    graph = build(quotas=quotas)
    users = tiny_model.random_users(truth_model(truth), 12, seed=1)
    answer = ask(graph, users)
    limits = [quotas.get(name, -1) for name in graph.branch_names]
    check_rows(answer, truth.answer(users, k=K, beam_width=W, quotas=limits), truth.index)
    assert not answer["request_status"].any() and not answer["branch_status"].any()
    assert {n: (a.dtype.name, a.ndim) for n, a in answer.items()} == {
        name: (dtype, len(shape)) for name, (dtype, shape, _) in OUTPUTS.items()
    }


def truth_model(truth):
    rows = truth.index.rows()
    return tiny_model.TinyModel(None, None, None, rows[0], rows[1], rows[2])


def test_a_row_is_answered_alike_alone_and_in_a_batch(graph, truth):
    users = tiny_model.random_users(truth_model(truth), 5, seed=2)
    together = ask(graph, users)
    for b in range(5):
        alone = ask(graph, {name: value[b : b + 1] for name, value in users.items()})
        for name in OUTPUTS:
            assert (alone[name][0] == together[name][b]).all(), name


def test_concurrent_requests_are_answered_as_if_alone(graph, truth):
    """Bit for bit, although the engine runs their rows in the same steps."""
    users = [tiny_model.random_users(truth_model(truth), 2, seed=s) for s in range(8)]
    alone = [ask(graph, u, "explain") for u in users]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda u: ask(graph, u, "explain"), users * 5))
    for i, answer in enumerate(together):
        for name, value in alone[i % 8].items():
            np.testing.assert_array_equal(answer[name], value, err_msg=name)


def test_a_full_queue_costs_the_refused_rows_one_branch(build, truth):
    graph = build(engine={"max_queue": 1})
    answer = ask(graph, tiny_model.random_users(truth_model(truth), 40, seed=10))
    status = answer["branch_status"]
    assert set(status[:, 0]) == {0, 8} and not status[:, 1].any()
    assert (answer["num_items"] == K).all()
    assert (answer["branch_mask"][status[:, 0] == 8] == 2).all()


def test_defaults(graph, truth):
    """Only user_id: an empty history, all features missing, everything wanted."""
    answer = ask(graph, {"user_id": [7, 8]})
    empty = {
        "user_id": np.array([7]),
        **{f"behavior_{x}": np.zeros((1, 1), np.int64) for x in ("item", "time")},
        **{f"behavior_{x}": np.zeros((1, 1), np.int32) for x in ("action", "domain")},
        "behavior_length": np.zeros(1, np.int32),
        "request_time": np.array([tiny_model.REQUEST_TIME]),
        "gender": [None],
        "age": [None],
        "city": [None],
        "exclude_item": np.zeros((1, 1), np.int64),
        "exclude_length": np.zeros(1, np.int32),
    }
    check_rows(answer, truth.answer(empty, k=K, beam_width=W) * 2, truth.index)


def test_rows_and_columns_of_one_stand_for_all(graph, truth):
    users = tiny_model.random_users(truth_model(truth), 3, seed=3)
    shape = users["behavior_item"].shape
    short = {
        **users,
        "behavior_action": [[2]],
        "behavior_domain": np.zeros((3, 1), np.int32),
        "request_time": [tiny_model.REQUEST_TIME],
        "gender": [b"F"],
        "num_items": [7],
    }
    full = {
        **users,
        "behavior_action": np.full(shape, 2),
        "behavior_domain": np.zeros(shape, np.int32),
        "gender": [b"F"] * 3,
        "num_items": [7] * 3,
    }
    got, want = ask(graph, short), ask(graph, full)
    for name in OUTPUTS:
        assert (got[name] == want[name]).all(), name
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"behavior_time: got shape \[3,7\], expected \[B = 3, T = 24\]; a size of 1",
    ):
        ask(graph, {**users, "behavior_time": users["behavior_time"][:, :7]})
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"gender: got shape \[2\], expected \[B"
    ):
        ask(graph, {**users, "gender": [b"F", b"M"]})


def test_behaviours_without_times_keep_their_order_and_their_repeats(graph, truth):
    """As training reads a sequences file, two days apart."""
    users = tiny_model.random_users(truth_model(truth), 3, seed=9)
    users["behavior_item"][:, 1::2] = users["behavior_item"][:, ::2]
    users["behavior_length"][:] = [24, 7, 0]
    for name in ("time", "action", "domain"):
        users.pop(f"behavior_{name}")
    got = ask(graph, users, "explain")
    shape = users["behavior_item"].shape
    timed = {
        **users,
        "behavior_time": np.full(shape, 1_600_000_000) + 2 * 86400 * np.arange(shape[1]),
        "behavior_action": np.ones(shape, np.int32),
        "behavior_domain": np.ones(shape, np.int32),
    }
    want = ask(graph, timed, "explain")
    assert (got["prompt_token"] == want["prompt_token"]).all()
    assert (got["prompt_token"] == truth.prompts(timed)[0]).all()


def test_exclusions_never_come_back(graph, truth):
    users = tiny_model.random_users(truth_model(truth), 4, seed=4)
    first = ask(graph, users)["item_id"]
    users["exclude_item"], users["exclude_length"] = first, np.full(4, K, np.int32)
    second = ask(graph, users)
    for b in range(4):
        assert not set(first[b]) & set(second["item_id"][b])
        assert second["num_items"][b] == K, "exclusions cost no place"


def test_request_time_zero_is_now(graph, truth):
    """Behaviours of the far future are dropped, those of the past are not."""
    users = tiny_model.random_users(truth_model(truth), 1, seed=5)
    users["behavior_length"][:] = 10
    users["request_time"][:] = 0
    users["behavior_time"][:] = 1
    past = ask(graph, users, "explain")["prompt_length"]
    users["behavior_time"][:] = 2**40
    future = ask(graph, users, "explain")["prompt_length"]
    assert past > future


def test_explain_shows_prompts_and_beams(graph, truth):
    users = tiny_model.random_users(truth_model(truth), 6, seed=6)
    users["beam_width"] = np.array([1, 2, 3, 4, 5, 6], np.int32)
    serve, explain = ask(graph, users), ask(graph, users, "explain")
    for name in OUTPUTS:
        assert (serve[name] == explain[name]).all(), name
    tokens, length, stable = truth.prompts(users)
    assert (explain["prompt_token"] == tokens).all() and (explain["prompt_length"] == length).all()
    assert (explain["prompt_stable_prefix"] == stable).all()
    beams = truth.engine.decode(tokens, length, truth.index, beam_width=users["beam_width"])
    assert (explain["beam_semantic_id"] == beams["sids"]).all()
    np.testing.assert_array_equal(explain["beam_score"], beams["score"])
    np.testing.assert_array_equal(explain["beam_step_score"], beams["step_score"])
    for b, width in enumerate(users["beam_width"]):
        assert np.isfinite(explain["beam_score"][b]).tolist() == [True] * width + [False] * (
            6 - width
        )
    for b in range(6):
        n = serve["num_items"][b]
        masks, source = serve["branch_mask"][b][:n], explain["source"][b]
        assert (masks & 1 << source[:n]).all() and (source[n:] == -1).all()


class _Fixed(tf.Module):
    """Proposes the same items to everyone."""

    def __init__(self, name, items, fail=None):
        super().__init__(name=name)
        self._items, self._fail = tuple(items), fail

    def detail_specs(self):
        return {f"{self.name}_seen": tf.TensorSpec([None, None], tf.int64)}

    def recall(self, request: Request, k: int) -> BranchAnswer:
        if self._fail:
            raise self._fail
        b = tf.shape(request.user_id)[0]
        items = tf.constant(list(self._items) + [-1] * (k - len(self._items)), tf.int64)
        score = tf.where(items >= 0, tf.constant(9.0), -float("inf"))
        details = {f"{self.name}_seen": request.behavior_item}
        rows = [tf.tile(x[None], [b, 1]) for x in (items, score)]
        return BranchAnswer(*rows, tf.zeros_like(request.row_status), details)


def test_branches_plug_in_between(build, truth):
    """Order gives bits; a branch sees the broadcast request; explain shows its details."""
    wanted = [int(truth.index.rows()[0][3]), int(truth.index.rows()[0][5])]
    graph = build(branches=[_Fixed("fixed", wanted)], quotas={"generative": 3, "fixed": 2})
    assert graph.branch_names == ["generative", "fixed", "popular"]
    users = tiny_model.random_users(truth_model(truth), 2, seed=7)
    answer = ask(graph, users, "explain")
    assert answer["branch_status"].tolist() == [[0, 0, 0]] * 2
    assert (answer["fixed_seen"] == users["behavior_item"]).all()
    for b in range(2):
        placed = dict(zip(answer["item_id"][b], answer["branch_mask"][b], strict=True))
        assert all(placed[i] & 2 for i in wanted)


def test_malformed_rows_meet_no_branch(build, truth):
    seen = _Fixed("seen", [])
    graph = build(branches=[seen])
    users = tiny_model.random_users(truth_model(truth), 3, seed=8)
    alone = ask(graph, {n: v[:1] for n, v in users.items()})
    users["behavior_length"][1] = -5
    users["age"][2] = np.nan
    answer = ask(graph, users, "explain")
    assert answer["request_status"].tolist() == [0, 3, 3]
    assert answer["branch_status"].tolist() == [[0, 0, 0], [3, 3, 3], [3, 3, 3]]
    assert answer["num_items"].tolist() == [K, 0, 0]
    assert (answer["item_id"][1:] == -1).all()
    assert (answer["item_id"][0] == alone["item_id"][0]).all()


def test_graph_refuses_what_cannot_be(graph):
    def make(branches, **options):
        options = RecallOptions(**options)
        return RecallGraph(graph.index, levels=4, facets=2, branches=branches, options=options)

    a, b = _Fixed("a", []), _Fixed("b", [])
    for branches, options, message in [
        ([], {}, "0 branches: expected 1..31"),
        ([a, b, _Fixed("a", [])], {}, "branches a, b, a: expected different names"),
        ([a, b], {"quotas": {"c": 3}}, "quota of branch 'c': expected one of a, b"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(branches, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_items": 0}, r"num_items = 0: expected 1\.\."),
        (
            {"beam_width": 65, "max_beam_width": 64},
            "beam_width = 65: expected 1..max_beam_width = 64",
        ),
        ({"max_beam_width": 5000}, r"max_beam_width = 5000: expected 1..4096"),
        ({"normalize": "none"}, "normalize = 'none': expected level|legal|vocab"),
        ({"temperature": float("nan")}, "temperature = nan: expected > 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        RecallOptions(**options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        RecallOptions().num_items = 3


@pytest.mark.parametrize(
    "features, message",
    [
        ([("seed", "int64")], "feature 'seed' is named like an input"),
        ([("a", "int64"), ("a", "string")], "feature 'a' is named like"),
        ([("a", "float")], r"feature 'a': kind 'float': expected string\|int64\|bucket"),
        ([("two words", "int64")], "input name 'two words': expected a Python identifier"),
    ],
)
def test_features_are_checked(features, message):
    with pytest.raises(ValueError, match=message):
        request_inputs(features, num_items=1, beam_width=1, deadline_ms=0)
