"""SID tables beside a frozen base, two stages, LoRA, export; `genrecall sft` resumed and
configured.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import transformers
from tiny_run import tokenized
from transformers import Qwen2Config, Qwen2ForCausalLM

from genrecall import cli
from genrecall.kernels import prompt_spec
from genrecall.training import config
from genrecall.training.semantic_ids.sid_table import SemanticIds
from genrecall.training.tuning import (
    checkpoint,
    lora,
    next_sid,
    presets,
    sft,
    sid_tables,
    training_loop,
    vocabulary,
)
from genrecall.training.tuning.sft_options import SftOptions

LEVEL_SIZES = (5, 4, 6)
LEVELS, HIDDEN = len(LEVEL_SIZES), 32


pytestmark = pytest.mark.usefixtures("one_thread")


def base_decoder(tied, rows, seed=0):
    torch.manual_seed(seed)
    shape = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=rows, tie_word_embeddings=tied, **shape, **heads)
    )


def expanded(tied, padding, seed=0):
    """(decoder with SID tables, its state before, tokenizer, SidSpace, tokens of the tokenizer)."""
    tokenizer = vocabulary.train_tokenizer(["what next"], 280)
    base = len(tokenizer)
    model = base_decoder(tied, base + padding, seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)
    sids = SemanticIds(np.arange(1), np.zeros((1, LEVELS), np.int32), LEVEL_SIZES, "0" * 64)
    books = [rng.standard_normal((size, 8)).astype(np.float32) for size in LEVEL_SIZES]
    space = vocabulary.expand_vocabulary(model, tokenizer, sids, books)
    return model, before, tokenizer, space, base


class Lines:
    """Samples of random SIDs after a few words."""

    def __init__(self, space, base, generator):
        first = np.array([ids[0] for ids in space.token_ids])
        self.codes = generator.integers(0, LEVEL_SIZES, (24, LEVELS))
        words = generator.integers(0, base, (24, 4))
        self.tokens = np.concatenate([words, self.codes + first], 1)
        self.lengths = np.full(24, self.tokens.shape[1])

    def batch(self, rows):
        width = self.tokens.shape[1]
        at = 3 + np.arange(len(rows)) * width + np.arange(LEVELS)[:, None]
        code = np.ascontiguousarray(self.codes[rows].T)
        return tuple(map(torch.from_numpy, (self.tokens[rows], at, code)))


class NoHooks:
    def on_step(self, progress):
        pass

    def validate(self, progress):
        return {"score": 0.0}


def train_stage(model, space, base, stage, options):
    sft.choose_trained(model, stage, options)
    objective = next_sid.NextSid(model, space, options.softmax)
    samples = lambda generator: Lines(space, base, generator)  # noqa: E731
    training_loop.train(objective, samples, options.loop, NoHooks())


def options_of(**more):
    loop = {"steps": 6, "batch_tokens": 64, "learning_rate": 1e-2, "warmup_steps": 0}
    return config.load(SftOptions, {"loop": loop | {"validations": 1}} | more)


@pytest.mark.parametrize("softmax", ["level", "vocab"])
@pytest.mark.parametrize("padding", [0, 7, 40])  # none, some, more than there are SID tokens
@pytest.mark.parametrize("tied", [True, False])
def test_stage_one_leaves_every_base_weight_bit_identical(tied, padding, softmax):
    model, before, _, space, base = expanded(tied, padding)
    rows = [table.sids.detach().clone() for table in sid_tables.tables(model)]
    train_stage(model, space, base, 1, options_of(softmax=softmax))
    merged = sid_tables.merged_state(model)
    tables = ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
    assert set(merged) == set(before) - ({"lm_head.weight"} if tied else set())
    new = sorted(i for level in space.token_ids for i in level)
    for name, tensor in merged.items():
        if name in tables:
            assert torch.equal(tensor[:base], before[name][:base])
            assert torch.equal(tensor[new[-1] + 1 :], before[name][new[-1] + 1 :])
        else:
            assert torch.equal(tensor, before[name]), name
    for table, start in zip(sid_tables.tables(model), rows, strict=True):
        assert not torch.equal(table.sids, start)


@pytest.mark.parametrize("padding", [0, 7, 40])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
def test_the_export_computes_the_logits_of_the_trained_module(tmp_path, tied, padding, rank):
    model, before, tokenizer, space, base = expanded(tied, padding)
    stages = {"lora_rank": rank, "lora_alpha": 8.0}
    train_stage(model, space, base, 2, options_of(stages=stages))
    spec = prompt_spec.PromptSpec.from_json(
        {
            "format_version": 1,
            "segments": [{"kind": "text", "text": "what next"}],
            "behaviors": {"actions": ["click"], "domains": ["ad"]},
        }
    )
    checkpoint.save_checkpoint(str(tmp_path / "c"), model, tokenizer, space, spec, "valid")
    again, _ = checkpoint.load_decoder(str(tmp_path / "c"))
    tokens = torch.tensor([[1, 2, space.token_ids[0][3], space.token_ids[2][5], base - 1]])
    with torch.inference_mode():
        want, got = model.eval()(tokens).logits, again.eval()(tokens).logits
    assert want.shape[-1] == again.config.vocab_size == max(base + padding, base + 15)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(again.state_dict()[name], before[name])
    frozen = "model.embed_tokens.weight"
    assert torch.equal(again.state_dict()[frozen][:base], before[frozen][:base]) == bool(rank)
    # And what was exported opens again for more training.
    vocabulary.reopen_vocabulary(again, space)
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, want, atol=1e-5, rtol=1e-5)


def test_lora_starts_as_the_identity_and_trains_nothing_but_itself_and_the_new_rows():
    model, _, _, space, base = expanded(True, 0)
    tokens = torch.tensor([[1, 2, base + 3]])
    with torch.inference_mode():
        want = model.eval()(tokens).logits
        sft.choose_trained(model, 2, options_of(stages={"lora_rank": 2}))
        assert torch.equal(model.eval()(tokens).logits, want)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(lora.is_adapter(n) or n.endswith("table.sids") for n in trained)
    assert len(trained) == 2 * 7 * 2 + 1


def test_lookup_and_scores_are_those_of_the_merged_table():
    base, sids = torch.randn(9, 4), torch.randn(3, 4)
    for first in (4, 8, 9):
        table = sid_tables.SplitTable(base, sids, first)
        merged = table.merged()
        ids = torch.arange(table.num_rows).view(1, -1)
        assert torch.equal(table.look_up(ids)[0], merged)
        hidden = torch.randn(2, 4)
        torch.testing.assert_close(table.score(hidden), hidden @ merged.T)
    with pytest.raises(ValueError, match="first = 10: expected <= the 9 rows"):
        sid_tables.SplitTable(base, sids, 10)


def test_reopening_wants_ids_in_a_row():
    model = base_decoder(True, 300)
    space = prompt_spec.SidSpace.build((2, 2), ((280, 281), (290, 291)), "0" * 64)
    with pytest.raises(ValueError, match="SID tokens from 280 on: expected ids that follow"):
        vocabulary.reopen_vocabulary(model, space)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(data folder, run folder with semantic IDs)."""
    return tokenized(tmp_path_factory, users=40, items=40)


def run_folder(shop, path):
    shutil.copytree(f"{shop[1]}/semantic_ids", f"{path}/semantic_ids")
    return str(path)


def command(shop, run, *more):
    loop = "--epochs 3 --batch_tokens 512 --validations 2 --save_minutes 0".split()
    fixed = ["sft", "--preset", "tiny", "--valid_users", "9", "--threads", "1", *loop]
    return [*fixed, "--data", shop[0], "--run", run, *more]


def weights(run):
    return checkpoint.load_decoder(f"{run}/checkpoint")[0].state_dict()


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("stages", [[], ["--new_rows_share", "0.4", "--lora_rank", "2"]])
def test_the_same_command_after_a_kill_reaches_the_same_metrics(
    shop, tmp_path, monkeypatch, capsys, stages
):
    whole, killed = (run_folder(shop, tmp_path / name) for name in ("whole", "killed"))
    assert cli.main(command(shop, whole, *stages)) == 0
    original = sft._Hooks.on_step
    for kill_at in (3, 8):

        def on_step(self, progress, kill_at=kill_at):
            original(self, progress)
            if self.stage == 2 and progress.step == kill_at:
                raise Killed

        monkeypatch.setattr(sft._Hooks, "on_step", on_step)
        with pytest.raises(Killed):
            cli.main(command(shop, killed, *stages))
    monkeypatch.setattr(sft._Hooks, "on_step", original)
    assert cli.main(command(shop, killed, *stages, "--seed", "1")) == 2
    err = capsys.readouterr().err
    assert "an unfinished run with options.loop.seed = 0, now 1" in err
    assert json.load(open(f"{killed}/sft.config.json"))["seed"] == 0
    assert cli.main(command(shop, killed, *stages, "--save_minutes", "1")) == 0
    assert "resumed after step 7" in capsys.readouterr().out
    a, b = (json.load(open(f"{r}/sft.metrics.json"))["metrics"] for r in (whole, killed))
    assert a == b and len(a["validations"]) == (3 if stages else 2)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(killed)[name]), name
    assert not os.path.exists(f"{killed}/state")


def test_restart_forgets_an_unfinished_run(shop, tmp_path, monkeypatch):
    run = run_folder(shop, tmp_path / "run")

    def on_step(self, progress):
        raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(sft._Hooks, "on_step", on_step)
        cli.main(command(shop, run))
    assert cli.main(command(shop, run, "--seed", "1", "--restart")) == 0


def test_the_command_is_configured_by_a_file_and_its_manifest_repeats_it(shop, tmp_path, capsys):
    run = run_folder(shop, tmp_path / "run")
    file = tmp_path / "sft.toml"
    file.write_text('preset = "tiny"\nvalid_users = 3\n[loop]\nsteps = 2\nvalidations = 1\n')
    fixed = ["sft", "--data", shop[0], "--run", run, "--threads", "1"]
    assert cli.main([*fixed, "--config", str(file)]) == 0
    first = weights(run)
    shutil.copy(f"{run}/sft.config.json", tmp_path / "again.json")
    assert cli.main([*fixed, "--config", str(tmp_path / "again.json")]) == 0
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, first[name]), name
    file.write_text("[loop]\nepoch = 2\n")
    capsys.readouterr()
    assert cli.main([*fixed, "--config", str(file)]) == 2
    assert f"{file}: loop.epoch = 2: unknown key; expected one of" in capsys.readouterr().err


def test_tensorboard_shows_the_loop_and_its_validations(shop, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = run_folder(shop, tmp_path / "run")
    assert cli.main(command(shop, run, "--epochs", "99", "--steps", "20")) == 0
    events = EventAccumulator(f"{run}/tensorboard/sft.stage_2")
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [10, 20]
    assert {"train/level_0", "train/learning_rate"} <= set(events.Tags()["scalars"])
    validations = json.load(open(f"{run}/sft.metrics.json"))["metrics"]["validations"]
    logged = [(e.step, e.value) for e in events.Scalars("valid/hr@10")]
    assert logged == [(v["step"], pytest.approx(v["hr@10"])) for v in validations]


def test_every_preset_is_one():
    for name, preset in presets.SFT.items():
        options = config.load(SftOptions, preset)
        assert options.checkpoint is None, name
    assert presets.default_sft({}) in presets.SFT
    assert presets.default_sft({"checkpoint": "x"}) == "pretrained"


def test_two_stages_share_the_budget():
    options = options_of(stages={"new_rows_share": 0.25})
    budget = {"minutes": 8.0, "epochs": 4, "steps": 100}
    options = config.load(SftOptions, config.as_dict(options), overrides={"loop": budget})
    (one, first), (two, second) = sft.stages(options)
    assert (one, two) == (1, 2)
    assert (first.minutes, first.epochs, first.steps) == (2.0, 1.0, 25)
    assert (second.minutes, second.epochs, second.steps) == (6.0, 3.0, 75)
    assert first.learning_rate == options.stages.new_rows_rate and first.validations == 1


def test_transformers_reads_the_export_without_a_warning(shop, tmp_path, caplog):
    run = run_folder(shop, tmp_path / "run")
    assert cli.main(command(shop, run, "--steps", "1")) == 0
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        f"{run}/checkpoint", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(f"{run}/checkpoint")
    space = prompt_spec.SidSpace.load(f"{run}/checkpoint/sid_space.json")
    assert tokenizer.convert_tokens_to_ids("<b_2>") == space.token_ids[1][2]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
