"""Metrics, baselines and full ranking; the engine's ranking against brute force; the commands, end
to end.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers

from genrecall import cli, kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import Events, Items, read_data
from genrecall.training.evaluation import baselines, evaluate, metrics, ranking
from genrecall.training.tuning import checkpoint, vocabulary


def test_hit_rates_by_hand():
    got = metrics.hit_rates([1, 5, 6, 10, 11, metrics.MISS])
    assert got["hr@5"] == pytest.approx(2 / 6)
    assert got["hr@10"] == pytest.approx(4 / 6)
    assert got["hr@50"] == pytest.approx(5 / 6)
    assert got["ndcg@5"] == pytest.approx((1 + 1 / math.log2(6)) / 6)
    assert got["ndcg@10"] == pytest.approx(
        (1 + 1 / math.log2(6) + 1 / math.log2(7) + 1 / math.log2(11)) / 6
    )
    assert metrics.hit_rates([])["hr@10"] == 0.0


def test_ties_count_against_the_target():
    assert metrics.rank_of(0.5, [0.9, 0.5, 0.1]) == 3
    assert metrics.rank_of(1.0, []) == 1
    item, score = np.array([7, 8, 9]), np.array([2.0, 1.0, 1.0], np.float32)
    assert [ranking.rank_in(item, score, i) for i in (7, 8, 9, 10)] == [1, 3, 3, metrics.MISS]


def catalogue(n):
    ids = np.arange(1, n + 1)
    empty = np.full(n, np.nan, np.float32)
    return Items(
        ids, [""] * n, [()] * n, [""] * n, empty, empty, {i: i - 1 for i in range(1, n + 1)}
    )


def test_baselines_by_hand():
    sequences = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 3, 2, 4], [2, 1, 5, 4]]  # training: the first two
    begin = np.arange(0, 17, 4)
    ones = np.ones(16, np.int32)
    times = np.tile(1_000_000 + 200_000 * np.arange(4), 4)
    lines = splits.clean_lines(
        Events(np.arange(4), begin, np.concatenate(sequences), ones, ones, times)
    )
    ranks = baselines.baseline_ranks(lines, catalogue(6), np.arange(4), "valid")
    # Training part: 1 2 | 1 2 | 1 3 | 2 1. Popularity: item 1 four times, 2 three, 3 once, the rest
    # never. User 0: history 1 2, target 3: best of what is left. User 2: history 1 3, target 2:
    # best of what is left. User 3: history 2 1, target 5: item 3 is before it, and 4 and 6 tie with
    # it.
    assert ranks["popularity"].tolist() == [1, 1, 1, 4]
    # From 2 only 1 followed, which is masked; from 3 nothing; from 1: 2 (masked) and 3.
    assert ranks["markov-1"].tolist() == [1, 1, 1, 4]
    ranks = baselines.baseline_ranks(lines, catalogue(6), np.array([2]), "test")
    # User 2, test: history 1 3 2, last 2; target 4 ties with 5 and 6 at zero.
    assert ranks["markov-1"].tolist() == [3]


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
    shop, folder = str(tmp_path_factory.mktemp("shop")), str(tmp_path_factory.mktemp("run"))
    assert cli.main(["synth", "--output", shop, "--users", "50", "--items", "40"]) == 0
    tokenize = "tokenize --levels 3 --codes 4 --dim 8".split()
    assert cli.main([*tokenize, "--data", shop, "--output", folder]) == 0
    sft = "sft --preset tiny --epochs 2 --validations 1 --valid_users 20 --threads 1".split()
    assert cli.main([*sft, "--data", shop, "--run", folder]) == 0
    return shop, folder


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
        assert ranked.top[i].tolist() == best[:10].tolist()
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
    assert (narrow[narrow != metrics.MISS] <= 2).all() and (narrow == metrics.MISS).any()
    assert (narrow >= exact).mean() > 0.9  # a narrow search may lose what ranks before the target


def test_run_folder_holds_what_the_contract_says(run):
    _, folder = run
    config = json.load(open(f"{folder}/config.json"))
    written = json.load(open(f"{folder}/metrics.json"))
    assert config["sft"]["preset"] == "tiny" and config["loop"]["epochs"] == 2
    assert len(config["data_digest"]) == 64 and config["versions"]["torch"] == torch.__version__
    assert written["validations"][-1]["kept"] and 0 <= written["validations"][-1]["hr@10"] <= 1


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
    assert index.num_items == len(data.items) and index.num_facets == 2
    prompt = kernels.Prompt.load(f"{folder}/checkpoint/prompt.gguf", space.digest)
    one = np.ones((1, 1), np.int64)
    assert prompt.assemble(index, one, one, one, one, [1], [1])[1][0] > 3
    if weight == "ecpm":
        best = data.items.ids[np.argmax(data.items.ecpm)]
        assert index.top_items(1)[0][0] == best


def test_evaluate_command(run, capsys):
    shop, folder = run
    assert (
        cli.main(["evaluate", "--data", shop, "--run", folder, "--split", "test", "--users", "12"])
        == 0
    )
    result = json.load(open(f"{folder}/evaluation_test.json"))
    assert result["users"] == 12 and set(result["methods"]) == {
        "genrecall",
        "popularity",
        "markov-1",
    }
    assert "hr@10" in result["methods"]["genrecall"] and "HR@10" in capsys.readouterr().out


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
    options = json.load(open(f"{out}/config.json"))
    assert options["sft"]["dropout"] == 0 and options["loop"]["learning_rate"] == 2e-4
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
