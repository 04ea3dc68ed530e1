"""`genrecall quantize`, end to end on a tiny shop: calibrated on training prompts, measured on
validation users, evaluated and refused as any other file.
"""

import json

import numpy as np
import pytest
from tiny_run import fine_tuned

from genrecall import cli, kernels
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import agreement, evaluate
from genrecall.training.evaluation.protocol import MISS
from genrecall.training.tuning import quantize as verb
from genrecall.trtllm_bridge import Engine, quantize


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(shop folder, run folder) of a tiny shop after tokenize and a few steps of sft."""
    return fine_tuned(tmp_path_factory)


@pytest.mark.parametrize("mode,kv", [("w8", "float"), ("w8a8", "float"), ("w8a8", "int8")])
def test_the_verb_writes_a_model_and_what_it_costs(run, mode, kv, capsys):
    shop, folder = run
    command = ["quantize", "--data", shop, "--run", folder, "--mode", mode, "--kv", kv]
    command += "--prompts 20 --users 12 --beam_width 10".split()
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    path = f"{folder}/model_{mode}{'_kvint8' if kv == 'int8' else ''}.gguf"
    assert path in shown.replace("\n", "") and "12 validation users, beam 10" in shown
    engine = Engine(path)
    assert (engine.quantization, engine.dtype) == (mode, "bfloat16")
    assert engine.kv_dtype == ("int8" if kv == "int8" else "bfloat16")
    with open(f"{path}.accuracy.json", encoding="utf-8") as f:
        written = json.load(f)
    assert written["model"]["quantization"] == mode
    assert written["model"]["weights_digest"] == engine.weights_digest
    assert written["options"]["prompts"] == 20
    against = written["accuracy"]["int8 / float32"]
    assert (against["users"], against["beam_width"]) == (12, 10)
    assert 0.6 <= against["overlap"] <= 1
    assert against["overlap_min"] <= against["overlap"]
    assert 0 < against["logit_error"] < 0.2 * against["logit_spread"]


def test_calibration_covers_every_training_prompt_it_is_given(run):
    shop, folder = run
    maker = evaluate.load_maker(read_data(shop), folder)
    assert (
        cli.main(["quantize", "--data", shop, "--run", folder, "--mode", "w8", "--users", "0"]) == 0
    )
    engine = Engine(f"{folder}/model_w8.gguf")
    samples = maker.epoch()
    everything = verb.calibrate(engine, maker, len(samples))
    some = verb.calibrate(engine, maker, 3, seed=1)
    again = verb.calibrate(engine, maker, 3, seed=1)
    tokens = samples.tokens[samples.begin[4] : samples.begin[5]]
    one = engine.input_maxima(tokens)
    for name in quantize.INPUTS:
        assert np.array_equal(some[name], again[name])
        assert (some[name] <= everything[name]).all() and (one[name] <= everything[name]).all()


def test_agreement_of_an_engine_with_itself_and_with_another(run):
    shop, folder = run
    maker = evaluate.load_maker(read_data(shop), folder)
    users = maker.lines.evaluated("valid")[:5]
    sids = np.array([[[0, 1, 2], [1, 1, 1], [-1, -1, -1]]] * 2, np.int32)
    score = np.array([[-1.0, -2.0, -np.inf]] * 2, np.float32)
    logits = np.array([[1.0, 2.0, 3.0]] * 2, np.float32)
    same = agreement.Answers(sids, score, logits, np.array([1, MISS]))
    found = agreement.compare(same, same)
    assert (found["overlap"], found["top1"], found["logit_error"]) == (1, 1, 0)
    assert found["hr@10"] == [0.5, 0.5] and found["score_error"] == 0
    moved = sids.copy()
    moved[0, 0] = [3, 3, 3]
    other = agreement.Answers(moved, score - 0.5, logits + 7, np.array([1, 1]))
    found = agreement.compare(same, other)
    assert found["overlap"] == 0.75 and found["overlap_min"] == 0.5 and found["top1"] == 0.5
    assert found["logit_error"] == 0  # a shift of all logits changes nothing
    assert found["score_error"] == pytest.approx(0.5)
    assert found["hr@10"] == [0.5, 1.0]
    engine = Engine(f"{folder}/model_w8.gguf")
    answers = agreement.answers(engine, maker, "valid", users, beam_width=8)
    evaluated = evaluate.ranking.rank_users(
        engine, maker, "valid", users, evaluate.ranking.RankOptions(beam_width=8)
    )
    assert np.array_equal(answers.ranks, evaluated.ranks)


def test_bad_input_is_refused(run, capsys, tmp_path):
    shop, folder = run
    command = ["quantize", "--data", shop]
    assert cli.main([*command, "--run", str(tmp_path)]) == 2
    assert "no sid_space.json; run `genrecall sft` first" in capsys.readouterr().err
    assert cli.main([*command, "--run", folder, "--alpha", "2"]) == 2
    assert "alpha = 2.0: expected 0..1" in capsys.readouterr().err
    assert kernels.read_gguf(f"{folder}/model_w8.gguf")["metadata"]["genrecall.source_digest"]
