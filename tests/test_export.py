"""`genrecall export`: what it writes; servable without Python; a whole version or none."""

import json
import pathlib
import re
import runpy
import shutil

import cc_host_util
import numpy as np
import pytest
import tensorflow as tf
import tiny_model
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from genrecall import cli, kernels
from genrecall.graphs import export as module
from genrecall.graphs.artefacts import Artefacts
from genrecall.graphs.export import export, next_version
from genrecall.graphs.loaded import LoadedModel
from genrecall.graphs.options import RecallOptions
from genrecall.graphs.recall_graph import OUTPUTS
from genrecall.kernels import prompt_spec
from genrecall.trtllm_bridge import quantize


def quietly(*args, **kwargs):
    return export(*args, **{"report": lambda line: None, "engine": {"num_threads": 1}, **kwargs})


def signature_def(folder, name="serving_default"):
    proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return proto.meta_graphs[0].signature_def[name]


def test_files(exported):
    files = {str(p.relative_to(exported)) for p in exported.rglob("*") if p.is_file()}
    assert {f for f in files if not f.startswith("variables/")} == {
        "saved_model.pb",
        "fingerprint.pb",
        "assets/model.gguf",
        "assets/recall_index.gguf",
        "assets/prompt.gguf",
        "assets.extra/model_card.json",
        "assets.extra/tf_serving_warmup_requests",
    }
    assert [p.name for p in exported.parent.iterdir()] == ["1"], "nothing else is left beside"


def test_no_absolute_paths(tiny, exported):
    for path in exported.rglob("*"):
        if path.is_file() and path.suffix != ".gguf":
            data = path.read_bytes()
            for folder in {tiny.checkpoint.parent, exported.parent, tiny.checkpoint.parents[2]}:
                assert str(folder).encode() not in data, path
            assert not re.search(rb"/(?:tmp|home|root|var|usr)/\w", data), path


@pytest.mark.parametrize("name", ["serving_default", "explain"])
def test_defaults_are_in_the_signature(exported, name):
    signature = signature_def(exported, name)
    defaults = {k: tf.make_ndarray(v) for k, v in signature.defaults.items()}
    assert set(signature.inputs) - set(defaults) == {"user_id"}
    expected = {
        "behavior_item": -1,
        "behavior_action": 1,
        "behavior_domain": 1,
        "behavior_time": 1,
        "behavior_length": 0,
        "request_time": 0,
        "exclude_item": -1,
        "exclude_length": 0,
        "beam_width": tiny_model.OPTIONS["beam_width"],
        "num_items": tiny_model.OPTIONS["num_items"],
        "deadline_ms": tiny_model.OPTIONS["deadline_ms"],
        "priority": 0,
        "seed": 0,
        "gender": b"",
        "age": -np.inf,
        "city": -1,
    }
    assert {k: v.item() for k, v in defaults.items()} == expected
    for key, value in defaults.items():
        info = signature.inputs[key]
        assert tf.as_dtype(info.dtype) == (tf.string if value.dtype == object else value.dtype)
        assert list(value.shape) == [1] * len(info.tensor_shape.dim)
        assert all(d.size == -1 for d in info.tensor_shape.dim)


def test_output_shapes(exported):
    sizes = {"K": tiny_model.OPTIONS["num_items"], "L": 4, "N": 2, "B": -1}
    signature = signature_def(exported)
    got = {
        name: (tf.as_dtype(info.dtype).name, [d.size for d in info.tensor_shape.dim])
        for name, info in signature.outputs.items()
    }
    assert got == {
        n: (dtype, [sizes[x] for x in shape]) for n, (dtype, shape, _) in OUTPUTS.items()
    }


def test_reloaded_equals_eager(tiny, exported, tmp_path):
    """The exported graph, in a session and reloaded in Python, answers as the module did."""
    from genrecall.graphs.build import build_recall_graph

    users = tiny_model.random_users(tiny, 7, seed=11)
    graph = build_recall_graph(
        Artefacts.load(tiny.checkpoint, tiny.index),
        exported / "assets" / "model.gguf",
        RecallOptions(**tiny_model.OPTIONS),
        engine={"num_threads": 1},
    )
    dtypes = {i.name: i.dtype for i in graph.inputs}
    tensors = {n: tf.constant(v, dtypes[n]) for n, v in users.items()}
    eager = graph.explain(**tensors)
    with LoadedModel(exported) as model:
        in_session = model(users, "explain")
    reloaded = tf.saved_model.load(str(exported))
    defaults = {
        n: tf.constant(tf.make_ndarray(v)) for n, v in signature_def(exported).defaults.items()
    }
    in_python = reloaded.signatures["explain"](**{**defaults, **tensors})
    assert set(eager) == set(in_session) == set(in_python)
    for name, value in eager.items():
        np.testing.assert_array_equal(value.numpy(), in_session[name], err_msg=name)
        np.testing.assert_array_equal(value.numpy(), in_python[name].numpy(), err_msg=name)


def test_without_python_and_after_moving(tiny, exported, tmp_path):
    """A C++ host gets the same items from a copy elsewhere, with the original gone."""
    users = [tiny_model.random_users(tiny, n, seed=n) for n in (1, 3)] + [
        {"user_id": np.array([5])}
    ]
    with LoadedModel(exported) as model:
        expected = [model(u) for u in users]
        explained = model(users[1], "explain")
    moved = tmp_path / "elsewhere" / "7"
    shutil.copytree(exported, moved)
    hidden = exported.parent / "hidden"
    exported.rename(hidden)  # nothing may be read from where it was exported to
    try:
        answers = cc_host_util.run_many(str(moved), users)
        detail, _ = cc_host_util.run(str(moved), users[1], signature="explain")
    finally:
        hidden.rename(exported)
    for (answer, _), want in zip(answers, expected, strict=True):
        assert set(answer) == set(want)
        for name in want:
            np.testing.assert_array_equal(answer[name], want[name], err_msg=name)
    for name in explained:
        np.testing.assert_array_equal(detail[name], explained[name], err_msg=name)


def test_warmup_requests(exported):
    path = str(exported / "assets.extra" / "tf_serving_warmup_requests")
    records = [
        prediction_log_pb2.PredictionLog.FromString(r.numpy())
        for r in tf.data.TFRecordDataset(path)
    ]
    assert len(records) == 8
    lengths = []
    with LoadedModel(exported) as model:
        for record in records:
            request = record.predict_log.request
            assert request.model_spec.signature_name == "serving_default"
            inputs = {n: tf.make_ndarray(v) for n, v in request.inputs.items()}
            assert inputs["priority"] == -1000 and inputs["deadline_ms"] == 0
            lengths.append(int(inputs["behavior_length"][0]))
            assert not model(inputs)["branch_status"].any()
    assert lengths[0] == 0 and lengths[-1] == tiny_model.MAX_EVENTS


def test_model_card(tiny, exported):
    card = json.loads((exported / "assets.extra" / "model_card.json").read_text())
    space = prompt_spec.SidSpace.load(tiny.checkpoint / "sid_space.json")
    index = kernels.RecallIndex.load(str(tiny.index))
    assert card["sid_space"] == {"digest": space.digest, "level_sizes": list(tiny.level_sizes)}
    assert card["index"]["checksum"] == f"{index.checksum:08x}" and card["index"]["items"] == 300
    assert card["model"]["dtype"] == "float32" and len(card["model"]["weights_digest"]) == 64
    assert card["branches"] == ["generative", "popular"]
    assert card["options"]["beam_width"] == 8 and card["options"]["engine"] == {"num_threads": 1}
    assert card["prompt"]["retokenized_share"] == 0, "a byte-level tokenizer without merges"
    assert card["prompt"]["spec"] == json.loads(
        kernels.Prompt.load(str(tiny.checkpoint / "prompt.gguf")).spec_json
    )
    names = [i["name"] for i in card["signatures"]["serving_default"]["inputs"]]
    assert names[0] == "user_id" and {"gender", "age", "city"} <= set(names)


def test_quantised_weights_are_served_as_they_are(tiny, exported, tmp_path):
    source = exported / "assets" / "model.gguf"
    path = tmp_path / "int8.gguf"
    card = quantize.quantize(source, path, "w8", kv_dtype="int8")
    folder = quietly(tiny.checkpoint, tiny.index, tmp_path / "shop", weights=path)
    assert (folder / "assets" / "model.gguf").read_bytes() == path.read_bytes()
    written = json.loads((folder / "assets.extra" / "model_card.json").read_text())["model"]
    assert written == {"checkpoint": tiny.checkpoint.name, **card}
    assert (written["quantization"], written["kv_dtype"]) == ("w8", "int8")
    with pytest.raises(FileNotFoundError, match="none.gguf"):
        quietly(tiny.checkpoint, tiny.index, tmp_path / "shop", weights=tmp_path / "none.gguf")
    file = kernels.read_gguf(path)
    del file["metadata"]["genrecall.sid_space_digest"]
    kernels.write_gguf(path, file["metadata"], file["tensors"])
    with pytest.raises(
        ValueError, match="no 'genrecall.sid_space_digest': not written by genrecall"
    ):
        quietly(tiny.checkpoint, tiny.index, tmp_path / "shop", weights=path)


def test_versions(tiny, exported, tmp_path):
    assert next_version(tmp_path / "nothing") == 1
    for name in ("3", "11", "x12", ".export-99-a"):
        (tmp_path / "shop" / name).mkdir(parents=True)
    assert next_version(tmp_path / "shop") == 12
    with pytest.raises(FileExistsError, match="1: exists already"):
        quietly(tiny.checkpoint, tiny.index, exported.parent, version=1)
    with pytest.raises(ValueError, match="version = 0: expected >= 1"):
        quietly(tiny.checkpoint, tiny.index, tmp_path, version=0)


def test_a_failed_export_leaves_nothing(tiny, tmp_path, monkeypatch):
    """Whichever step fails, the model's folder holds no version and no rubbish."""

    def fail(*args, **kwargs):
        raise RuntimeError("injected")

    for owner, step in [
        (module.checkpoints, "convert"),
        (module, "build_recall_graph"),
        (module.tf.saved_model, "save"),
        (module.cards, "write_model_card"),
        (module, "_check"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="injected"):
            patch.setattr(owner, step, fail)
            quietly(tiny.checkpoint, tiny.index, tmp_path / "shop", warmup=1)
        assert list((tmp_path / "shop").iterdir()) == [], step


def test_artefacts_of_different_models_are_refused(tiny, tmp_path):
    other = tiny_model.make(tmp_path / "other", seed=1)
    with pytest.raises(
        ValueError, match=r"recall_index.gguf: sid_space_digest '.*': expected '.*'"
    ):
        quietly(tiny.checkpoint, other.index, tmp_path / "shop")
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny.checkpoint, mixed)
    shutil.copy(other.checkpoint / "prompt.gguf", mixed)
    with pytest.raises(ValueError, match=r"prompt.gguf: sid_space_digest"):
        quietly(mixed, tiny.index, tmp_path / "shop")
    (mixed / "prompt.gguf").unlink()
    (mixed / "tokenizer.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"tokenizer.json: no such file, and no prompt.gguf"
    ):
        quietly(mixed, tiny.index, tmp_path / "shop")
    shutil.copy(tiny.checkpoint / "prompt.gguf", mixed)
    spec = json.loads((mixed / "prompt_spec.json").read_text())
    spec["behaviors"]["recent_events"] += 1
    (mixed / "prompt_spec.json").write_text(json.dumps(spec))
    with pytest.raises(
        ValueError, match="prompt.gguf: compiled from another spec than .*spec.json"
    ):
        quietly(mixed, tiny.index, tmp_path / "shop")
    assert not list((tmp_path / "shop").iterdir())
    index = kernels.RecallIndex.build(
        list(tiny.level_sizes),
        tiny.item_id,
        tiny.codes,
        sid_space_digest=prompt_spec.SidSpace.load(tiny.checkpoint / "sid_space.json").digest,
    )
    index.save(str(tmp_path / "bare.gguf"))
    with pytest.raises(ValueError, match=r"bare.gguf: 0 facets: expected 2, as the prompt has"):
        quietly(tiny.checkpoint, tmp_path / "bare.gguf", tmp_path / "shop")


def test_a_spec_is_compiled_where_no_compiled_prompt_is(tiny, exported, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny.checkpoint, bare)
    (bare / "prompt.gguf").unlink()
    folder = quietly(bare, tiny.index, tmp_path / "shop", warmup=0, check=False)
    asset = "assets/prompt.gguf"
    assert (folder / asset).read_bytes() == (exported / asset).read_bytes()
    assert not (bare / "prompt.gguf").exists(), "the checkpoint folder is only read"


def test_command(tiny, tmp_path, capsys):
    arguments = ["--checkpoint", tiny.checkpoint, "--index", tiny.index, "--output", tmp_path / "m"]
    arguments += ["--num_items", 10, "--beam_width", 4, "--max_beam_width", 16, "--version", 5]
    arguments += ["--quota", "generative=6", "popular=2", "--warmup", 2, "--threads", 1]
    assert cli.main(["export", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"exported {tmp_path / 'm' / '5'}"
    card = json.loads((tmp_path / "m" / "5" / "assets.extra" / "model_card.json").read_text())
    assert card["model"]["dtype"] == "bfloat16" and card["version"] == 5
    assert card["options"]["quotas"] == {"generative": 6, "popular": 2}
    with LoadedModel(tmp_path / "m" / "5") as model:
        answer = model({"user_id": [1]})
        assert answer["item_id"].shape == (1, 10) and answer["num_items"] == 10
    assert cli.main(["export", *map(str, arguments)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", *map(str, arguments[:-4]), "--quota", "popular=-1"]) == 2
    assert "--quota popular=-1: expected BRANCH=N" in capsys.readouterr().err


def test_example_of_a_branch_of_ones_own(tiny, tmp_path):
    """As a user would run it; then its picks are among the answers, less the excluded."""
    script = pathlib.Path(__file__).parents[1] / "examples" / "custom_branch.py"
    example = runpy.run_path(str(script))
    picks = [int(i) for i in tiny.item_id[:3]]
    files = ["--checkpoint", tiny.checkpoint, "--index", tiny.index, "--output", tmp_path / "m"]
    example["main"]([str(x) for x in files] + [f"--pick={p}" for p in picks])
    card = json.loads((tmp_path / "m" / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["branches"] == ["generative", "picks", "popular"]
    with LoadedModel(tmp_path / "m" / "1") as model:
        answer = model({"user_id": [1, 2], "exclude_item": [picks[:1]], "exclude_length": [1, 0]})
    for b, wanted in enumerate((picks[1:], picks)):
        masks = dict(zip(answer["item_id"][b].tolist(), answer["branch_mask"][b], strict=True))
        proposed = [p for p in picks if masks.get(p, 0) & 2]
        assert proposed[:2] == wanted[:2], "its quota; more only where others have them"
        assert set(proposed) <= set(wanted)
