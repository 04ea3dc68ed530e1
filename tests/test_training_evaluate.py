"""Metrics, baselines and full ranking; the engine's ranking against brute force; the commands, end
to end.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_run import fine_tuned

from genrecall import cli, kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.evaluation import evaluate, held_out_log, metrics, ranking
from genrecall.training.evaluation.protocol import MISS
from genrecall.training.tuning import checkpoint, vocabulary


def test_ties_count_against_the_target():
    assert metrics.rank_of(0.5, [0.9, 0.5, 0.1]) == 3
    assert metrics.rank_of(1.0, []) == 1
    item, score = np.array([7, 8, 9]), np.array([2.0, 1.0, 1.0], np.float32)
    assert [ranking.rank_in(item, score, i) for i in (7, 8, 9, 10)] == [1, 3, 3, MISS]


def brute_force(model, token_ids, tokens, codes):
    """log-probability of every SID after a prompt, softmax over each level's codes. float64 [N]."""
    scores = np.zeros(len(codes))
    with torch.inference_mode():
        for n, sid in enumerate(codes):
            path = [token_ids[level][c] for level, c in enumerate(sid)]
            logits = model(torch.tensor([[*tokens, *path]])).logits[0].double()
            for level, code in enumerate(sid):
                row = logits[len(tokens) - 1 + level][torch.tensor(token_ids[level])]
                scores[n] += float(torch.log_softmax(row, 0)[code])
    return scores


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(shop folder, run folder) of a tiny shop after tokenize and a few steps of sft, by the
    commands.
    """
    return fine_tuned(tmp_path_factory)


def test_the_engine_ranks_as_brute_force_does(run):
    shop, folder = run
    data = read_data(shop)
    maker = evaluate.load_maker(data, folder)
    users = maker.lines.evaluated("test")[:6]
    engine = ranking.open_engine(f"{folder}/checkpoint", f"{folder}/engine")
    options = ranking.RankOptions(beam_width=64)  # more than there are SIDs: the exact ranking
    ranked = ranking.rank_users(engine, maker, "test", users, options)
    model, _ = checkpoint.load_decoder(f"{folder}/checkpoint")
    token_ids = prompt_spec.SidSpace.load(f"{folder}/checkpoint/sid_space.json").token_ids
    item_id, codes, _, _ = maker.index.rows()
    seen = maker.lines.visible("test")
    for i, u in enumerate(users):
        tokens, length = maker.prompts(users[i : i + 1], seen[users[i : i + 1]])
        score = brute_force(model, token_ids, tokens[0, : length[0]].tolist(), codes)
        line = maker.lines.items_of(u)
        candidates = ~np.isin(item_id, line[: seen[u]])
        order = np.argsort(-score[candidates], kind="stable")
        best = item_id[candidates][order]
        assert ranked.top[i][: len(best)].tolist() == best.tolist()
        assert ranked.ranks[i] == 1 + best.tolist().index(line[seen[u]])


def test_a_target_outside_the_beams_is_a_miss(run):
    shop, folder = run
    maker = evaluate.load_maker(read_data(shop), folder)
    users = maker.lines.evaluated("valid")
    engine = ranking.open_engine(f"{folder}/checkpoint", f"{folder}/engine")
    exact = ranking.rank_users(engine, maker, "valid", users, ranking.RankOptions(64)).ranks
    narrow = ranking.rank_users(
        engine, maker, "valid", users, ranking.RankOptions(2, batch=7)
    ).ranks
    assert (narrow[narrow != MISS] <= 2).all() and (narrow == MISS).any()
    assert (narrow >= exact).mean() > 0.9  # a narrow search may lose what ranks before the target


def test_run_folder_holds_what_the_contract_says(run):
    _, folder = run
    config = json.load(open(f"{folder}/sft.config.json"))
    written = json.load(open(f"{folder}/sft.metrics.json"))["metrics"]
    assert config["options"]["decoder"]["hidden"] == 64
    assert config["options"]["loop"]["epochs"] == 2
    assert len(config["data"]["digest"]) == 64
    assert config["packages"]["torch"] == torch.__version__
    assert written["validations"][-1]["kept"] and 0 <= written["best"]["hr@10"] <= 1
    assert not os.path.exists(f"{folder}/state") and os.listdir(f"{folder}/tensorboard")


@pytest.mark.parametrize("weight", ["popularity", "ecpm"])
def test_index_command(run, weight, tmp_path):
    shop, folder = run
    out = str(tmp_path / "recall_index.gguf")
    command = ["index", "--data", shop, "--checkpoint", f"{folder}/checkpoint", "--weight", weight]
    npz = f"{folder}/semantic_ids/semantic_ids.npz"
    assert cli.main([*command, "--semantic_ids", npz, "--output", out]) == 0
    space = prompt_spec.SidSpace.load(f"{folder}/checkpoint/sid_space.json")
    index = kernels.RecallIndex.load(out, space.digest)
    data = read_data(shop)
    assert index.num_items == len(data.items) and index.num_facets == 3
    prompt = kernels.Prompt.load(f"{folder}/checkpoint/prompt.gguf", space.digest)
    one = np.ones((1, 1), np.int64)
    assert prompt.assemble(index, one, one, one, one, [1], [1])[1][0] > 3
    if weight == "ecpm":
        best = data.items.ids[np.argmax(data.items.ecpm)]
        assert index.top_items(1)[0][0] == best


def test_evaluate_command(run, capsys):
    shop, folder = run
    command = ["evaluate", "--data", shop, "--run", folder, "--users", "12"]
    assert cli.main([*command, "--sasrec", "train", "--threads", "1"]) == 0
    result = json.load(open(f"{folder}/evaluation_valid.json"))
    names = ["genrecall", "popularity", "markov-1", "item-to-item", "sasrec"]
    assert result["users"] == 12 and list(result["methods"]) == names
    for name in names:
        own, between = result["methods"][name], result["intervals"][name]
        assert all(low <= own[m] <= high for m, (low, high) in between.items())
        assert 0 < own["coverage@10"] <= 1 and own["ecpm@10"] > 0
    best = max(names[1:], key=lambda name: result["methods"][name]["hr@10"])
    difference = result["difference"]
    assert difference["from"] == best
    ahead = result["methods"]["genrecall"]["hr@10"] - result["methods"][best]["hr@10"]
    assert difference["hr@10"]["mean"] == pytest.approx(ahead)
    out = capsys.readouterr()
    assert "HR@10" in out.out and f"genrecall - {best}: HR@10" in out.out
    assert "sasrec epoch 1: loss" in out.err
    # What was trained is read back, and only for this data.
    assert cli.main(command) == 0
    assert "epoch" not in capsys.readouterr().err
    again = json.load(open(f"{folder}/evaluation_valid.json"))
    assert again["methods"] == result["methods"] and again["intervals"] == result["intervals"]
    assert cli.main([*command, "--sasrec", "off"]) == 0
    assert "sasrec" not in json.load(open(f"{folder}/evaluation_valid.json"))["methods"]


def test_the_test_split_is_used_with_a_warning_and_on_record(run, tmp_path, capsys):
    shop, folder = run
    own = str(tmp_path / "run")
    shutil.copytree(folder, own)
    command = ["evaluate", "--data", shop, "--run", own, "--users", "5"]
    assert cli.main(command) == 0
    assert "test split" not in capsys.readouterr().err and not held_out_log.read(own)
    assert cli.main([*command, "--split", "test"]) == 0
    assert "the test split is used, for the first time" in capsys.readouterr().err
    assert cli.main([*command, "--split", "test", "--beam_width", "7"]) == 0
    assert "the test split is used, 1 time(s) before" in capsys.readouterr().err
    uses = held_out_log.read(own)
    assert [u["options"]["beam_width"] for u in uses] == [50, 7]
    assert uses[0]["users"] == 5 and len(uses[0]["checkpoint_digest"]) == 64
    with open(held_out_log.path(own), "a") as f:
        f.write("{\n")
    assert cli.main([*command, "--split", "test"]) == 2
    assert "test_uses.jsonl:3: bad JSON" in capsys.readouterr().err


def test_widths(run, tmp_path):
    shop, folder = run
    command = ["evaluate", "--data", shop, "--run", folder, "--users", "20", "--sasrec", "off"]
    widths = ["--widths", "64", "2", "10"]
    assert cli.main([*command, *widths, "--output", str(tmp_path / "x.json")]) == 0
    points = json.load(open(f"{folder}/widths_valid.json"))["points"]
    assert [p["beam_width"] for p in points] == [2, 10, 64]
    assert [sorted(map(int, p["hr"])) for p in points] == [[], [5, 10], [5, 10, 20, 50]]
    whole = json.load(open(tmp_path / "x.json"))["methods"]["genrecall"]
    assert points[2]["hr"]["10"] == whole["hr@10"]  # both exact: 40 items
    assert all(p["latency_ms"] > 0 and p["users_per_s"] > 0 for p in points)
    with open(f"{folder}/widths_valid.png", "rb") as f:
        assert f.read(8) == b"\x89PNG\r\n\x1a\n"


def test_commands_in_the_wrong_order_say_what_is_missing(run, tmp_path, capsys):
    shop, _ = run
    assert cli.main(["sft", "--data", shop, "--run", str(tmp_path)]) == 2
    assert "run `genrecall tokenize` first" in capsys.readouterr().err
    assert cli.main(["evaluate", "--data", shop, "--run", str(tmp_path)]) == 2
    assert "run `genrecall sft` first" in capsys.readouterr().err


def test_an_index_of_other_codebooks_is_refused(run, tmp_path, capsys):
    shop, folder = run
    other = str(tmp_path)
    tokenize = "tokenize --levels 3 --codes 4 --dim 8 --seed 1".split()
    assert cli.main([*tokenize, "--data", shop, "--output", other]) == 0
    command = ["index", "--data", shop, "--checkpoint", f"{folder}/checkpoint"]
    npz = f"{other}/semantic_ids/semantic_ids.npz"
    assert cli.main([*command, "--semantic_ids", npz, "--output", f"{other}/x.gguf"]) == 2
    assert "codebook digest" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["Qwen2", "Qwen3"])
def test_sft_from_a_checkpoint_folder(run, tmp_path, architecture):
    """A base model as users have them: GQA, an untied head, an embedding padded beyond its
    tokenizer.
    """
    shop, folder = run
    tokenizer = vocabulary.train_tokenizer(["next item", "gender F"], 300)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=len(tokenizer) + 10,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    shutil.copytree(f"{folder}/semantic_ids", tmp_path / "run" / "semantic_ids")
    sft = "sft --epochs 1 --validations 1 --valid_users 5 --threads 1 --dtype bfloat16".split()
    base, out = str(tmp_path / "base"), str(tmp_path / "run")
    assert cli.main([*sft, "--data", shop, "--run", out, "--checkpoint", base]) == 0
    trained, _ = checkpoint.load_decoder(f"{out}/checkpoint")
    assert type(trained).__name__ == f"{architecture}ForCausalLM"
    options = json.load(open(f"{out}/sft.config.json"))["options"]
    assert options["dropout"] == 0 and options["loop"]["learning_rate"] == 2e-4
    validations = json.load(open(f"{out}/sft.metrics.json"))["metrics"]["validations"]
    assert [v["stage"] for v in validations] == [1, 2]
    assert cli.main(["evaluate", "--data", shop, "--run", out, "--users", "5"]) == 0


def test_a_strange_folder_goes_through_every_command(tmp_path, capsys):
    """Missing titles, unicode, users with one event, a user with 2,000, no categories, no
    profiles.
    """
    shop, out = tmp_path / "shop", str(tmp_path / "run")
    shop.mkdir()
    rows = [{"id": 5 * i, "title": None if i % 3 else f"Öl №{i} 香水"} for i in range(30)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (shop / "items.jsonl").write_text(lines, encoding="utf-8")
    rng = np.random.default_rng(0)
    lengths = [1, 1, 2000, *rng.integers(1, 9, 20)]
    users = [
        f"{u} {' '.join(str(5 * i) for i in rng.integers(0, 30, n))}" for u, n in enumerate(lengths)
    ]
    (shop / "sequences.txt").write_text("\n".join(users) + "\n")
    data, run = ["--data", str(shop)], ["--run", out]
    assert cli.main(["tokenize", *data, "--output", out, "--levels", "2"]) == 0
    sft = "sft --preset tiny --epochs 1 --validations 1 --threads 1".split()
    assert cli.main([*sft, *data, *run]) == 0
    assert cli.main(["evaluate", *data, *run]) == 0
    (shop / "sequences.txt").write_text("1 5\n2 10\n")
    assert cli.main([*sft, *data, *run]) == 2
    assert "no user has two events" in capsys.readouterr().err
    assert cli.main(["evaluate", *data, *run]) == 2
    assert "no user has the three events" in capsys.readouterr().err
