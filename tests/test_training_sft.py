"""Vocabulary expansion, samples, the objective, the loop: fine-tuning, station by station."""

import os
import shutil

import numpy as np
import pytest
import torch

from genrecall import kernels
from genrecall.kernels import prompt_spec
from genrecall.training.dataset import splits, synth
from genrecall.training.dataset.data_folder import Events, read_data
from genrecall.training.prompting import build_index, prompts, samples
from genrecall.training.semantic_ids import tokenize
from genrecall.training.semantic_ids.vectorizer import VectorOptions
from genrecall.training.tuning import (
    checkpoint,
    next_sid,
    sid_tables,
    vocabulary,
)
from genrecall.training.tuning.loop_options import LoopOptions
from genrecall.training.tuning.sft_options import DecoderOptions

TINY = DecoderOptions(64, 2, 2, 0, 192)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """(data, sids, codebooks) of a small generated shop."""
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 80, 60, 0)
    data = read_data(path)
    options = tokenize.TokenizeOptions(levels=3, codes=8, vectors=VectorOptions(dim=16))
    made = tokenize.tokenize_items(data, options)
    return data, made.sids, made.tokenizer.codebooks


def decoder(shop, spec, seed=0):
    """(model, tokenizer, sid space) with the SID tokens in."""
    _, sids, codebooks = shop
    tokenizer = vocabulary.train_tokenizer(prompts.spec_texts(spec), 300)
    model = checkpoint.new_decoder(TINY, len(tokenizer), seed)
    return model, tokenizer, vocabulary.expand_vocabulary(model, tokenizer, sids, codebooks)


def maker_of(shop, spec, tokenizer, space, folder, **options):
    data, sids, _ = shop
    parsed = prompt_spec.PromptSpec.from_json(spec)
    path = os.path.join(folder, "prompt.gguf")
    prompt_spec.compile_prompt(parsed, checkpoint.tokenize_with(tokenizer), space, path)
    prompt = kernels.Prompt.load(path, space.digest)
    lines = splits.clean_lines(data.events)
    weight = np.ones(len(data.items), np.float32)
    index = build_index.build_index(data.items, sids, parsed, space.digest, weight)
    return samples.SampleMaker(lines, "valid", prompt, index, data.profiles, parsed, **options)


def make_lines(*sequences):
    """Lines of sequences of items, a day and more apart."""
    begin = np.cumsum([0, *map(len, sequences)])
    item = np.concatenate(sequences)
    time = np.concatenate([1_000_000 + 200_000 * np.arange(len(s)) for s in sequences])
    ones = np.ones(len(item), np.int32)
    return splits.clean_lines(Events(np.arange(len(sequences)), begin, item, ones, ones, time))


# --- protocol A -----------------------------------------------------------------------------------


def test_splits_hold_out_the_last_two():
    lines = make_lines([1, 2, 3, 4], [5, 6], [7, 8, 9], [1])
    assert lines.visible("valid").tolist() == [2, 2, 1, 1]
    assert lines.visible("test").tolist() == [3, 2, 2, 1]
    assert lines.evaluated("valid").tolist() == [0, 2]
    assert [s.tolist() for s in splits.training_sequences(lines)] == [[1, 2], [5, 6], [7], [1]]


def test_a_target_that_repeats_its_history_is_not_evaluated():
    lines = make_lines([1, 2, 1, 4], [1, 2, 3, 1])
    assert lines.evaluated("valid").tolist() == [1]
    assert lines.evaluated("test").tolist() == [0]


def test_popularity_counts_training_only(shop):
    items = shop[0].items
    lines = make_lines([1, 2, 2, 3, 4], [2, 3, 4])
    counts = splits.popularity(lines, items)
    assert counts[:4].tolist() == [1, 3, 0, 0] and counts.sum() == 4


# --- vocabulary -----------------------------------------------------------------------------------


def untie(model):
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))


@pytest.mark.parametrize("padding", [0, 10, 64])
@pytest.mark.parametrize("tied", [True, False])
def test_expansion_leaves_base_rows_bit_identical(shop, padding, tied):
    _, sids, codebooks = shop
    tokenizer = vocabulary.train_tokenizer(["next item"], 280)
    model = checkpoint.new_decoder(TINY, len(tokenizer) + padding, 0)
    if not tied:
        untie(model)
    base = len(tokenizer)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    before = [t.weight.detach()[:base].clone() for t in tables[: 1 if tied else 2]]
    space = vocabulary.expand_vocabulary(model, tokenizer, sids, codebooks)
    total = sum(sids.level_sizes)
    assert len(sid_tables.tables(model)) == len(before)
    for table, rows in zip(sid_tables.tables(model), before, strict=True):
        merged = table.merged()
        assert torch.equal(merged[:base], rows)
        assert torch.isfinite(merged).all()
        assert len(merged) == table.num_rows == max(base + padding, base + total)
    assert [len(level) for level in space.token_ids] == list(sids.level_sizes)
    assert sorted(i for level in space.token_ids for i in level) == list(range(base, base + total))
    assert tokenizer.convert_ids_to_tokens(space.token_ids[1][2]) == "<b_2>"
    assert space.codebook_digest == sids.codebook_digest
    with pytest.raises(ValueError, match="already has <a_0>"):
        vocabulary.expand_vocabulary(model, tokenizer, sids, codebooks)


def test_a_tokenizer_longer_than_the_table_is_refused(shop):
    _, sids, codebooks = shop
    tokenizer = vocabulary.train_tokenizer(["next item"], 280)
    model = checkpoint.new_decoder(TINY, len(tokenizer) - 1, 0)
    with pytest.raises(ValueError, match=r"has \d+ tokens: expected <= the \d+ rows of the table"):
        vocabulary.expand_vocabulary(model, tokenizer, sids, codebooks)


def test_codes_that_mean_alike_start_alike(shop):
    _, sids, codebooks = shop
    tokenizer = vocabulary.train_tokenizer(["next item"], 280)
    model = checkpoint.new_decoder(TINY, len(tokenizer), 0)
    space = vocabulary.expand_vocabulary(model, tokenizer, sids, codebooks)
    rows = sid_tables.sid_rows(model, space.level_sizes)[0].detach().numpy()
    book = codebooks[0]
    apart = [
        np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(len(book), 1)]
        for x in (book, rows)
    ]
    assert np.corrcoef(*apart)[0, 1] > 0.7


# --- batches -------------------------------------------------------------------------------------


# --- objective and checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("softmax", ["level", "vocab"])
def test_loss_equals_the_plain_formula(shop, tmp_path, softmax):
    spec = prompts.default_spec(shop[0])
    model, tokenizer, space = decoder(shop, spec)
    maker = maker_of(shop, spec, tokenizer, space, tmp_path)
    made = maker.make(np.array([0, 3]), np.array([4, 2]))
    module = next_sid.NextSid(model, space, softmax).eval()
    with torch.inference_mode():
        sums, counts = module(*made.batch(np.array([0, 1])))
        want = np.zeros(3)
        for s in range(2):
            own = made.tokens[made.begin[s] : made.begin[s + 1]]
            logits = model(torch.from_numpy(own[None].astype(np.int64))).logits[0].double()
            for t in range(made.target_begin[s], made.target_begin[s + 1]):
                for level in range(3):
                    row = logits[made.at[t, level]]
                    ids = torch.tensor(space.token_ids[level])
                    own_logit = row[ids[made.code[t, level]]]
                    want[level] += float(
                        torch.logsumexp(row[ids] if softmax == "level" else row, 0) - own_logit
                    )
    assert counts.tolist() == [len(made.at)] * 4
    np.testing.assert_allclose(sums.numpy(), [*want, 0], rtol=1e-5)


def test_dropout_acts_in_training_only_and_leaves_the_checkpoint_ordinary(shop, tmp_path):
    spec = prompts.default_spec(shop[0])
    model, tokenizer, space = decoder(shop, spec)
    maker = maker_of(shop, spec, tokenizer, space, tmp_path)
    names = set(model.state_dict())
    module = next_sid.NextSid(model, space, dropout=0.5)
    assert set(model.state_dict()) == names
    batch = maker.make(np.array([0]), np.array([4])).batch(np.array([0]))
    torch.manual_seed(0)
    module.train()
    assert not torch.equal(module(*batch)[0], module(*batch)[0])
    module.eval()
    assert torch.equal(module(*batch)[0], module(*batch)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoint_folder_is_an_ordinary_one(shop, tmp_path, dtype):
    spec = prompts.default_spec(shop[0])
    model, tokenizer, space = decoder(shop, spec)
    parsed = prompt_spec.PromptSpec.from_json(spec)
    for _ in range(2):  # the second replaces the first
        checkpoint.save_checkpoint(
            str(tmp_path / "c"), model, tokenizer, space, parsed, "test", dtype
        )
    assert os.listdir(tmp_path) == ["c"]
    again, tokenizer_again = checkpoint.load_decoder(str(tmp_path / "c"))
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab()
    for name, tensor in sid_tables.merged_state(model).items():
        assert torch.equal(again.state_dict()[name], tensor.to(dtype).float()), name
    assert prompt_spec.SidSpace.load(tmp_path / "c" / "sid_space.json") == space
    assert prompt_spec.PromptSpec.from_json(tmp_path / "c" / "prompt_spec.json") == parsed
    kernels.Prompt.load(str(tmp_path / "c" / "prompt.gguf"), space.digest)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="hidden = 64, heads = 3: expected an even whole number"):
        DecoderOptions(64, 2, 3)
    with pytest.raises(ValueError, match="kv_heads = 3: expected a divisor of 4"):
        DecoderOptions(kv_heads=3)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        checkpoint.load_decoder(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ValueError, match="architecture BertModel: expected one of Qwen2"):
        checkpoint.load_decoder(str(tmp_path))
    for minutes in (0, float("nan")):
        with pytest.raises(ValueError, match=rf"minutes = {minutes}: expected > 0"):
            LoopOptions(minutes=minutes)


def test_a_damaged_checkpoint_to_start_from_is_named(tiny, tmp_path):
    for name in ("config.json", "model.safetensors"):
        folder = tmp_path / name
        shutil.copytree(tiny.checkpoint, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match=f"{folder}.*: not (a readable checkpoint|JSON): "):
            checkpoint.load_decoder(str(folder))
