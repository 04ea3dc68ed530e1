"""The request's gate, behaviour cleaning and prompt assembly."""

import numpy as np
import op_fixtures
import pytest
import tensorflow as tf
import tiny_model

from genrecall import kernels, tf_ops

InvalidArgument = tf.errors.InvalidArgumentError
LIMITS = dict(max_beam_width=256, max_items=100)


def with_row(request, name, row, value):
    changed = request[name].copy()
    changed[row] = value
    return {**request, name: changed}


def test_good_requests_pass():
    for rows, events in [(1, 1), (3, 6), (2, 0)]:
        request = op_fixtures.request(rows, events=events, excluded=min(events, 2))
        status = tf_ops.check_request(
            **request, **LIMITS, features={"age": np.zeros(rows, np.float32)}
        )
        assert status.dtype == tf.int32 and status.numpy().tolist() == [0] * rows


BAD_VALUES = [
    ("behavior_length", 7, r"behavior_length\[{b}\] = 7: expected 0..T = 6"),
    ("behavior_length", -1, r"behavior_length\[{b}\] = -1: expected 0..T = 6"),
    ("exclude_length", 4, r"exclude_length\[{b}\] = 4: expected 0..E = 3"),
    ("beam_width", 0, r"beam_width\[{b}\] = 0: expected 1..max_beam_width = 256"),
    ("beam_width", 10**6, r"beam_width\[{b}\] = 1000000: expected 1..max_beam_width = 256"),
    ("num_items", 0, r"num_items\[{b}\] = 0: expected 1..max_items = 100"),
    ("num_items", 101, r"num_items\[{b}\] = 101: expected 1..max_items = 100"),
    ("priority", 1001, r"priority\[{b}\] = 1001: expected -1000..max_priority = 1000"),
    ("request_time", -5, r"request_time\[{b}\] = -5: expected >= 0"),
]


@pytest.mark.parametrize("name,value,message", BAD_VALUES)
def test_bad_row_alone_fails_and_among_others_is_marked(name, value, message):
    with pytest.raises(InvalidArgument, match=message.format(b=0)):
        tf_ops.check_request(**with_row(op_fixtures.request(1), name, 0, value), **LIMITS)
    status = tf_ops.check_request(**with_row(op_fixtures.request(3), name, 1, value), **LIMITS)
    assert status.numpy().tolist() == [0, 3, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_must_be_finite(value):
    features = {"height": np.ones(1, np.float32), "age": np.array([value], np.float32)}
    with pytest.raises(InvalidArgument, match=r"age\[0\] = (nan|inf): expected a finite number"):
        tf_ops.check_request(**op_fixtures.request(1), **LIMITS, features=features)


def test_empty_batch():
    with pytest.raises(InvalidArgument, match="user_id: expected at least one row"):
        tf_ops.check_request(**op_fixtures.request(0), **LIMITS)


@pytest.mark.parametrize("name", sorted(op_fixtures.request()))
def test_wrong_rank_and_rows_of_every_input(name):
    request = op_fixtures.request(2)
    for bad in (request[name][None], np.repeat(request[name], 2, 0), request[name][0, ...]):
        with pytest.raises(InvalidArgument, match=r": expected shape \[B"):
            tf_ops.check_request(**{**request, name: bad}, **LIMITS)
    floats = tf.constant(request[name], tf.float32)
    with pytest.raises((InvalidArgument, TypeError)):
        tf_ops.check_request(**{**request, name: floats}, **LIMITS)


def test_shape_functions():
    names = list(op_fixtures.request())
    got = {}

    def trace(*tensors):
        request = dict(zip(names, tensors, strict=True))
        got["status"] = tf_ops.check_request(**request, **LIMITS)
        got["cleaned"] = tf_ops.clean_behaviors(
            *(request[f"behavior_{n}"] for n in ("item", "action", "domain", "time", "length")),
            request["request_time"],
            got["status"],
            max_events=9,
        )
        return got["status"]

    specs = [tf.TensorSpec([None] * v.ndim, v.dtype) for v in op_fixtures.request().values()]
    specs[names.index("seed")] = tf.TensorSpec([5], tf.int32)
    tf.function(trace).get_concrete_function(*specs)
    assert got["status"].shape.as_list() == [5]
    assert [t.shape.as_list() for t in got["cleaned"]] == [[5, 9]] * 4 + [[5]]
    specs[names.index("behavior_item")] = tf.TensorSpec([4, None], tf.int64)
    with pytest.raises(ValueError, match="expected shape"):
        tf.function(trace).get_concrete_function(*specs)


def cleaned_by_op(request, row_status=None, **options):
    return tf_ops.clean_behaviors(
        request["behavior_item"],
        request["behavior_action"],
        request["behavior_domain"],
        request["behavior_time"],
        request["behavior_length"],
        request["request_time"],
        row_status,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(max_events=4, block=3),
        dict(max_events=50, repeat_window_s=0, attribution_window_s=10**6),
        dict(max_events=50, actions=(("exposure", 1), 3), domains=(("content",), 2)),
    ],
)
def test_cleaning_equals_bindings(options):
    request = op_fixtures.request(20, events=40, seed=5)
    request["behavior_item"] %= 7  # repeats and conversions of what was clicked
    request["behavior_time"][:, ::5] = 2_000_001  # in the future
    kept = options["max_events"]
    bits = {**options, **{n: options[n][1] for n in ("actions", "domains") if n in options}}
    names = {**options, **{n: options[n][0] for n in ("actions", "domains") if n in options}}
    got = cleaned_by_op(request, **names)
    assert got.item.shape == (20, kept)
    lengths = set()
    for b in range(20):
        n = request["behavior_length"][b]
        events = [request[f"behavior_{f}"][b, :n] for f in ("item", "action", "domain", "time")]
        want = kernels.clean_behaviors(*events, int(request["request_time"][b]), **bits)
        n = int(got.length[b])
        lengths.add(n)
        for field in ("item", "action", "domain", "time"):
            row = getattr(got, field)[b].numpy()
            np.testing.assert_array_equal(row[:n], want[field])
            assert set(row[n:]) <= {-1}
    assert len(lengths) > 2


def test_cleaning_does_not_look_at_refused_rows():
    request = with_row(op_fixtures.request(2), "behavior_length", 0, 99)
    assert cleaned_by_op(request, [3, 0]).length[0] == 0
    with pytest.raises(InvalidArgument, match=r"length\[0\] = 99: expected 0..T = 6"):
        cleaned_by_op(request)
    assert cleaned_by_op(op_fixtures.request(0)).item.shape == (0, 64)
    with pytest.raises(
        ValueError, match="actions: 'buy': expected one of exposure, click, conversion"
    ):
        cleaned_by_op(request, actions=["buy"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompt_path(model):
    return str(model.checkpoint / "prompt.gguf")


def assembled_by_ops(model, handle, users):
    index = tf_ops.acquire_index(tf_ops.RecallIndexResource(model.index))
    options = tiny_model.SPEC["behaviors"]
    names = ("max_events", "block", "actions", "domains", "attribution_window_s", "repeat_window_s")
    cleaned = cleaned_by_op(users, **{n: options[n] for n in names})
    found = tf_ops.lookup_semantic_ids(
        index, cleaned.item, levels=len(model.level_sizes), facets=tiny_model.NUM_FACETS
    )
    return tf_ops.assemble_prompt(
        handle,
        cleaned.action,
        cleaned.domain,
        found.sids,
        found.facets,
        cleaned.length,
        string_features=[tf.constant(users["gender"])],
        int64_features=[users["city"]],
        float_features=[users["age"]],
    )


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_prompts_equal_bindings(model, prompt_path, rows):
    users = tiny_model.random_users(model, rows)
    got = assembled_by_ops(model, tf_ops.PromptResource(prompt_path), users)
    assert got.tokens.shape[0] == rows
    if rows == 0:
        return
    want = kernels.Prompt.load(prompt_path).assemble(
        kernels.RecallIndex.load(str(model.index)),
        *(users[f"behavior_{n}"] for n in ("item", "action", "domain", "time", "length")),
        users["request_time"],
        {
            "gender": [g.decode() for g in users["gender"]],
            "age": users["age"],
            "city": users["city"],
        },
    )
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_prompt_names_what_is_wrong(model, prompt_path):
    handle = tf_ops.PromptResource(prompt_path)
    users = tiny_model.random_users(model, 2)
    events = [np.zeros((2, 3), np.int32)] * 2
    sids, facets = np.zeros((2, 3, 4), np.int32), np.zeros((2, 3, 2), np.int16)
    gender, city, age = [tf.constant(users["gender"])], [users["city"]], [users["age"]]
    cases = [
        ((*events, sids[..., :3], facets, [0, 0], gender, city, age), r"sids: .*L = 4\], got"),
        ((*events, sids, facets[..., :1], [0, 0], gender, city, age), r"facets: .*F = 2\], got"),
        ((*events, sids, facets, [0, 4], gender, city, age), r"length\[1\] = 4: expected 0..T = 3"),
        (
            (*events, sids, facets, [0, 0], [], city, age),
            "string_features: got 0 tensors: expected 1",
        ),
        (
            (*events, sids, facets, [0, 0], gender, city, [age[0][:1]]),
            r"age: expected shape \[B = 2\]",
        ),
    ]
    for inputs, message in cases:
        with pytest.raises(InvalidArgument, match=message):
            tf_ops.assemble_prompt(handle, *inputs)
    with pytest.raises(tf.errors.FailedPreconditionError):
        tf_ops.PromptResource(prompt_path, "another space")


def test_prompt_shape_function(prompt_path):
    handle = tf_ops.PromptResource(prompt_path)
    got = []

    @tf.function
    def trace(action, sids, facets, length):
        got.extend(tf_ops.assemble_prompt(handle, action, action, sids, facets, length))
        return got[0]

    trace.get_concrete_function(
        tf.TensorSpec([None, 3], tf.int32),
        tf.TensorSpec([4, None, None], tf.int32),
        tf.TensorSpec([None, None, 2], tf.int16),
        tf.TensorSpec([None], tf.int32),
    )
    assert [t.shape.as_list() for t in got] == [[4, None], [4], [4]]
