"""Item text, vectors, residual k-means and the resolution of collisions."""

import json

import numpy as np
import pytest

from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import residual_kmeans, text, tokenize
from genrecall.training.semantic_ids.tokenize import SemanticIds, TokenizeOptions


def test_item_text():
    assert (
        text.item_text("Red lipstick", ("Lux", "Makeup", "Lux"), "Makeup")
        == "Red lipstick. Makeup. Lux"
    )
    assert text.item_text("", ("Unknown", "Nails"), "") == "Nails"
    assert text.item_text(" ", (), "") == "unknown item"


def test_similar_texts_have_near_vectors():
    texts = ["red nail polish", "blue nail polish", "garden hose", "garden rake", "läppstift", ""]
    x = text.embed_texts(texts, dim=4)
    assert x.dtype == np.float32 and x.shape[0] == 6
    assert x[0] @ x[1] > x[0] @ x[2] and x[2] @ x[3] > x[2] @ x[1]
    np.testing.assert_array_equal(x, text.embed_texts(texts, dim=4))


def test_one_item():
    assert text.embed_texts(["only"]).shape[0] == 1
    quantised = residual_kmeans.residual_kmeans(text.embed_texts(["only"]), 3, 8, seed=0)
    assert quantised.codes.tolist() == [[0, 0, 0]]


def test_encoder_folder_is_mean_pooled(tmp_path):
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "red", "blue", "polish"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "encoder" / "0_Transformer"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=5,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    got = text.embed_texts(["red polish", "blue"], encoder=str(tmp_path / "encoder"))
    with torch.inference_mode():
        want = model(torch.tensor([[2, 4]])).last_hidden_state.mean(1)[0].numpy()
    np.testing.assert_allclose(got[0], want / np.linalg.norm(want), atol=1e-5)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        text.embed_texts(["x"], encoder=str(tmp_path))


def test_cooccurrence_sees_neighbours():
    row_of = {10 * i: i for i in range(6)}
    sequences = [[0, 10, 20]] * 5 + [[30, 40]] * 5
    x = text.cooccurrence_vectors([np.array(s) for s in sequences], row_of, dim=3, seed=0)
    assert x.shape[0] == 6
    assert x[3] @ x[0] < 0.1 and not x[5].any()
    assert not text.cooccurrence_vectors([], row_of, dim=3, seed=0).any()


def test_residual_kmeans_reduces_the_residual_and_is_deterministic():
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    a, b = (residual_kmeans.residual_kmeans(x, 3, 16, seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.codes, b.codes)
    rebuilt = sum(book[a.codes[:, level]] for level, book in enumerate(a.codebooks))
    np.testing.assert_allclose(rebuilt + a.residual, x, atol=1e-4)
    assert (a.residual**2).sum() < 0.5 * (x**2).sum()
    assert a.codes.min() >= 0 and a.codes.max() < 16


@pytest.mark.parametrize("seed", range(5))
def test_resolved_ids_are_distinct_and_the_originals_recoverable(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (200, 3)).astype(np.int32)
    residual = rng.standard_normal((200, 2)).astype(np.float32)
    resolved, size = residual_kmeans.resolve_collisions(codes, residual, 3)
    assert (
        residual_kmeans.collision_rate(codes) > 0.8
        and residual_kmeans.collision_rate(resolved) == 0
    )
    assert resolved.max() == size - 1
    np.testing.assert_array_equal(resolved[:, :-1], codes[:, :-1])  # prefixes stay
    kept = resolved[:, -1] < 3
    np.testing.assert_array_equal(resolved[kept], codes[kept])
    assert (
        len(np.unique(codes, axis=0)) == kept.sum()
    )  # one item of each SID keeps it: the one nearest to it
    distance = np.linalg.norm(residual, axis=1)
    for sid in np.unique(codes, axis=0):
        group = np.flatnonzero((codes == sid).all(axis=1))
        assert kept[group[np.argmin(distance[group])]]
    # Extended codes under a prefix are used without gaps.
    for prefix in np.unique(codes[:, :-1], axis=0):
        under = resolved[(resolved[:, :-1] == prefix).all(axis=1), -1]
        assert sorted(under[under >= 3].tolist()) == list(range(3, 3 + (under >= 3).sum()))


def test_level_use():
    use = residual_kmeans.level_use(np.array([[0, 1], [0, 2], [0, 1], [0, 2]]), [4, 4])
    assert use[0] == (0.25, 1.0)
    assert use[1][0] == 0.5 and use[1][1] == pytest.approx(2.0)


def test_codes_for_catalogues():
    assert [tokenize.codes_for(n) for n in (1, 64, 1000, 2048, 12101, 10**7)] == [
        8,
        8,
        64,
        256,
        256,
        256,
    ]


def test_command_writes_the_contract(tmp_path):
    synth.write_shop(str(tmp_path / "shop"), 40, 60, 0)
    data = read_data(str(tmp_path / "shop"))
    options = TokenizeOptions(levels=3, codes=8, spare_codes=5)
    sids, quantised, report = tokenize.tokenize_items(data, options)
    tokenize.write_semantic_ids(str(tmp_path / "run" / "semantic_ids"), sids, quantised, report)
    again = SemanticIds.load(str(tmp_path / "run" / "semantic_ids" / "semantic_ids.npz"))
    np.testing.assert_array_equal(again.codes, tokenize.tokenize_items(data, options)[0].codes)
    np.testing.assert_array_equal(again.item_id, data.items.ids)
    assert again.level_sizes == sids.level_sizes and again.codebook_digest == sids.codebook_digest
    assert len(np.unique(again.codes, axis=0)) == 60
    assert again.codes[:, -1].max() < again.level_sizes[-1] - 5 + 1
    written = json.loads((tmp_path / "run" / "semantic_ids" / "report.json").read_text())
    assert written["collision_rate_after"] == 0 and written["data_digest"] == data.digest
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"levels = 9: expected 1\.\.8"):
        TokenizeOptions(levels=9)


def test_a_table_that_lacks_an_item_is_refused(tmp_path):
    synth.write_shop(str(tmp_path / "shop"), 2, 4, 0)
    items = read_data(str(tmp_path / "shop")).items
    sids = SemanticIds(np.array([1, 2, 3]), np.zeros((3, 1), np.int32), (1,), "")
    with pytest.raises(ValueError, match="no semantic ID for 1 items of the data, first 4"):
        sids.check_items(items, "x.npz")


def test_what_is_no_table_of_semantic_ids_is_refused_by_name(tmp_path):
    path = tmp_path / "semantic_ids.npz"
    np.savez(path, item_id=np.arange(300))
    whole = path.read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:150] + bytes([whole[150] ^ 1]) + whole[151:],
        "empty": b"",
        "text": b"item_id",
        "incomplete": whole,
    }
    for content in bad.values():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"semantic_ids\.npz: (not a readable|no array)"):
            SemanticIds.load(str(path))
    with pytest.raises(FileNotFoundError):
        SemanticIds.load(str(tmp_path / "none.npz"))
