"""The RQ-VAE: what it learns, its codebooks, its contrastive term."""

import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from genrecall import cli
from genrecall.training.dataset import synth
from genrecall.training.semantic_ids import report, residual_kmeans, rqvae
from genrecall.training.semantic_ids.rqvae import RqVaeOptions
from genrecall.training.semantic_ids.sid_tokenizer import SidTokenizer

SMALL = {"latent": 8, "hidden": (16,), "epochs": 15, "batch": 64, "learning_rate": 5e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


def clusters(n=400, seed=0):
    """float32 [n, 12]: 20 clouds on a curved sheet."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((20, 3))[rng.integers(0, 20, n)]
    flat = centre + 0.05 * rng.standard_normal((n, 3))
    return np.tanh(flat @ rng.standard_normal((3, 12))).astype(np.float32)


def test_it_reconstructs_and_is_deterministic():
    x = clusters()
    seen = []
    tokenizer, losses = rqvae.fit(
        x,
        (3, 16),
        RqVaeOptions(**SMALL),
        3,
        on_epoch=lambda done, means: seen.append((done, means)),
    )
    assert [done for done, _ in seen] == list(range(1, 16))
    assert losses == seen[-1][1] and set(losses) == {"reconstruction", "commitment", "total"}
    assert losses["reconstruction"] < 0.5 * seen[0][1]["reconstruction"]
    codes = tokenizer.quantise(x).codes
    errors = report.reconstruction_error(tokenizer, codes, x)
    assert errors[-1] < 0.15 and errors == sorted(errors, reverse=True)
    assert tokenizer.base_sizes == (16, 16, 16)
    again, _ = rqvae.fit(x, (3, 16), RqVaeOptions(**SMALL), 3)
    np.testing.assert_array_equal(again.quantise(x).codes, codes)


def test_its_network_in_numpy_is_torchs():
    x = clusters(50)
    training = rqvae._Training(x, (2, 8), RqVaeOptions(**SMALL), 0, None)
    tokenizer, _ = training.run(None)
    with torch.inference_mode():
        want = training.encoder(torch.from_numpy(x) / training.scale)
        back = training.decoder(want) * training.scale
    np.testing.assert_allclose(tokenizer.encoder(x), want.numpy(), atol=1e-5)
    np.testing.assert_allclose(tokenizer.decoder(want.numpy()), back.numpy(), atol=1e-5)


def test_it_is_stored_with_its_network(tmp_path):
    x = clusters(60)
    tokenizer, _ = rqvae.fit(x, (2, 8), RqVaeOptions(**{**SMALL, "epochs": 2}), 0)
    path = str(tmp_path / "codebooks.npz")
    tokenizer.save(path, (8, 9))
    again, digest = SidTokenizer.load(path)
    assert digest == tokenizer.digest((8, 9))
    np.testing.assert_array_equal(again.quantise(x).codes, tokenizer.quantise(x).codes)
    codes = again.quantise(x).codes
    np.testing.assert_array_equal(again.reconstruct(codes), tokenizer.reconstruct(codes))


def codebook(rows, **options):
    return rqvae._Codebook(np.array(rows, np.float32), RqVaeOptions(**options))


def test_a_code_moves_to_the_mean_of_what_it_is_used_for():
    book = codebook([[0.0, 0.0], [10.0, 10.0]], decay=0.5, restart_below=0.0)
    rng = np.random.default_rng(0)
    batch = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 9.0], [11.0, 13.0]])
    chosen = book(batch, rng)
    np.testing.assert_array_equal(chosen, [[0, 0], [0, 0], [10, 10], [10, 10]])
    # Half of the old total, half of the batch's: counts stay 1, totals meet half-way.
    np.testing.assert_allclose(book.rows, [[1.0, 0.0], [10.0, 10.5]], atol=1e-6)


def test_dead_codes_start_again_at_an_item():
    book = codebook([[0.0, 0.0], [99.0, 99.0]], decay=0.5, restart_below=0.3)
    rng = np.random.default_rng(0)
    batch = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    book(batch, rng)  # code 1: 1 -> 0.5
    np.testing.assert_array_equal(book.rows[1], [99.0, 99.0])
    book(batch, rng)  # 0.25: dead
    assert book.rows[1].tolist() in batch.tolist() and book.count[1] == 1
    alive = codebook([[0.0, 0.0], [99.0, 99.0]], decay=0.5, restart_below=0.0)
    for _ in range(4):
        alive(batch, rng)
    np.testing.assert_allclose(alive.rows[1], [99.0, 99.0])


def test_every_code_is_used_where_items_are_many():
    x = clusters(1000)
    tokenizer, _ = rqvae.fit(x, (2, 32), RqVaeOptions(**SMALL), 0)
    codes = tokenizer.quantise(x).codes
    assert len(np.unique(codes[:, 0])) >= 28
    with_kmeans = residual_kmeans.quantise(residual_kmeans.fit_codebooks(x, 2, 32, 0), x)
    unsaid = ((with_kmeans.residual) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report.reconstruction_error(tokenizer, codes, x)[-1] < 5 * unsaid + 0.05


def test_partners_are_drawn_as_often_as_they_occur_together():
    pairs = csr_matrix(np.array([[0, 3, 1, 0], [3, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], float))
    partners = rqvae._Partners(pairs)
    rng = np.random.default_rng(0)
    rows = np.array([3, 0, 1, 2])
    drawn = [partners.draw(rows, rng) for _ in range(2000)]
    assert all(places.tolist() == [1, 2, 3] for places, _ in drawn)  # item 3 has none
    others = np.array([other for _, other in drawn])
    assert abs((others[:, 0] == 1).mean() - 0.75) < 0.05
    assert (others[:, 1] == 0).all() and (others[:, 2] == 0).all()
    assert set(others[:, 0]) == {1, 2}


def test_the_contrastive_term_is_info_nce():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    got = rqvae._contrastive(a, b, 0.5).item()
    x, y = (v / v.norm(dim=1, keepdim=True) for v in (a, b))
    similarity = (x @ y.T / 0.5).double().numpy()
    rows = np.log(np.exp(similarity).sum(1)) - similarity.diagonal()
    columns = np.log(np.exp(similarity).sum(0)) - similarity.diagonal()
    assert got == pytest.approx((rows.mean() + columns.mean()) / 2, abs=1e-5)


def test_items_that_occur_together_come_to_share_codes():
    rng = np.random.default_rng(0)
    looks, company = rng.integers(0, 4, (2, 200))  # what stands out, and who is bought with whom
    x = np.concatenate([2 * np.eye(4)[looks], np.eye(4)[company]], axis=1)
    x = (x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32)
    pairs = csr_matrix((company[:, None] == company) & ~np.eye(200, dtype=bool), dtype=float)

    def share(weight):
        """Of the pairs, how many have the same first code."""
        options = RqVaeOptions(**{**SMALL, "epochs": 30}, contrastive=weight)
        tokenizer, losses = rqvae.fit(x, (2, 4), options, 0, pairs)
        assert ("contrastive" in losses) == bool(weight)
        first = tokenizer.quantise(x).codes[:, 0]
        return (first[:, None] == first)[pairs.nonzero()].mean()

    assert share(2.0) > 0.55 > 0.4 > share(0.0)


def test_a_contrastive_term_needs_pairs():
    with pytest.raises(ValueError, match="contrastive > 0: expected pairs of items that occur"):
        rqvae.fit(clusters(20), (2, 8), RqVaeOptions(contrastive=0.1), 0)


def test_the_command_trains_one(tmp_path, capsys):
    shop, run = str(tmp_path / "shop"), tmp_path / "run"
    synth.write_shop(shop, 40, 60, 0)
    arguments = ["tokenize", "--data", shop, "--output", str(run), "--method", "rqvae"]
    small = ["--levels", "2", "--codes", "8", "--epochs", "3", "--contrastive", "0.1"]
    assert cli.main([*arguments, *small, "--hidden", "16", "--latent", "4"]) == 0
    assert "epoch 3 of 3: reconstruction " in capsys.readouterr().out
    written = json.loads((run / "semantic_ids" / "report.json").read_text())
    assert set(written["losses"]) == {"reconstruction", "commitment", "contrastive", "total"}
    assert written["collision_rate_after"] == 0
    books = dict(np.load(run / "semantic_ids" / "codebooks.npz"))
    assert books["codebook_0"].shape == (8, 4)
    grown = ["tokenize", "--data", shop, "--extend", str(run), "--output", str(tmp_path / "grown")]
    assert cli.main(grown) == 0
