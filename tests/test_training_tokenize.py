"""Vectors to codes, the resolution of collisions, and `genrecall tokenize`, new items included."""

import json
import os
import shutil

import numpy as np
import pytest

from genrecall import cli
from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import collisions, new_items, residual_kmeans, tokenize
from genrecall.training.semantic_ids.sid_table import SemanticIds
from genrecall.training.semantic_ids.sid_tokenizer import Layers, SidTokenizer
from genrecall.training.semantic_ids.tokenize import TokenizeOptions
from genrecall.training.semantic_ids.tokenized import Tokenized
from genrecall.training.semantic_ids.vectorizer import VectorOptions

SMALL = ("--levels", "3", "--codes", "8", "--dim", "16", "--collaborative_dim", "8")


def options(**more):
    vectors = VectorOptions(dim=16, collaborative_dim=8)
    return TokenizeOptions(levels=3, codes=8, vectors=vectors, **more)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop") / "data")
    synth.write_shop(path, 60, 60, 0)
    return path


def without_items(source, target, gone):
    """The data folder `source` without the items `gone` and their events, as `target`."""
    shutil.copytree(source, target)
    lines = open(f"{source}/items.jsonl", encoding="utf-8")
    kept = [line for line in lines if json.loads(line)["id"] not in gone]
    (target / "items.jsonl").write_text("".join(kept), encoding="utf-8")
    header, *events = open(f"{source}/events.csv", encoding="utf-8")
    column = header.strip().split(",").index("item_id")
    kept = [e for e in events if int(e.split(",")[column]) not in gone]
    (target / "events.csv").write_text(header + "".join(kept), encoding="utf-8")
    return str(target)


def test_residual_kmeans_reduces_the_residual_and_is_deterministic():
    x = np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32)
    books, again = (residual_kmeans.fit_codebooks(x, 3, 16, seed=5) for _ in range(2))
    np.testing.assert_array_equal(books, again)
    quantised = residual_kmeans.quantise(books, x)
    rebuilt = sum(book[quantised.codes[:, level]] for level, book in enumerate(books))
    np.testing.assert_allclose(rebuilt + quantised.residual, x, atol=1e-4)
    assert (quantised.residual**2).sum() < 0.5 * (x**2).sum()
    # Every code is the nearest of its level, by brute force.
    residual = x
    for level, book in enumerate(books):
        distance = ((residual[:, None] - book) ** 2).sum(-1)
        chosen = quantised.codes[:, level]
        assert (distance[np.arange(300), chosen] <= distance.min(1) + 1e-4).all()
        residual = residual - book[chosen]


def test_one_vector():
    x = np.ones((1, 4), np.float32)
    books = residual_kmeans.fit_codebooks(x, 3, 8, seed=0)
    assert residual_kmeans.quantise(books, x).codes.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
def test_resolved_ids_are_distinct_and_the_originals_recoverable(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (200, 3)).astype(np.int32)
    distance = rng.random(200)
    resolved, size = collisions.resolve_collisions(codes, distance, 3)
    assert collisions.collision_rate(codes) > 0.8 and collisions.collision_rate(resolved) == 0
    assert resolved.max() == size - 1
    np.testing.assert_array_equal(resolved[:, :-1], codes[:, :-1])  # prefixes stay
    kept = resolved[:, -1] < 3
    np.testing.assert_array_equal(resolved[kept], codes[kept])
    # One item of each SID keeps it: the one nearest to it.
    assert len(np.unique(codes, axis=0)) == kept.sum()
    for sid in np.unique(codes, axis=0):
        group = np.flatnonzero((codes == sid).all(axis=1))
        assert kept[group[np.argmin(distance[group])]]
    # Extended codes under a prefix are used without gaps.
    for prefix in np.unique(codes[:, :-1], axis=0):
        under = resolved[(resolved[:, :-1] == prefix).all(axis=1), -1]
        assert sorted(under[under >= 3].tolist()) == list(range(3, 3 + (under >= 3).sum()))


def test_many_items_alike_are_resolved_in_linear_time():
    codes = np.zeros((50_000, 2), np.int32)
    resolved, size = collisions.resolve_collisions(codes, np.zeros(50_000), 4)
    assert size == 4 + 49_999 and collisions.collision_rate(resolved) == 0


@pytest.mark.parametrize("seed", range(5))
def test_new_items_take_what_is_free_and_nothing_else(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, (60, 2)).astype(np.int32)
    known, size = collisions.resolve_collisions(codes, rng.random(60), 3)
    base, distance, last = rng.integers(0, 3, (30, 2)).astype(np.int32), rng.random(30), size + 2
    placed = collisions.place_new(known, base, distance, 3, last)
    np.testing.assert_array_equal(placed[:, 0], base[:, 0])
    given = placed[placed[:, 1] >= 0]
    both = np.concatenate([known, given])
    assert len(np.unique(both, axis=0)) == len(both) and given[:, 1].max() < last
    own = placed[:, 1] == base[:, 1]
    taken = {tuple(s) for s in known.tolist()}
    for row in np.flatnonzero(own):
        assert tuple(base[row].tolist()) not in taken
    for row in np.flatnonzero(placed[:, 1] < 0):  # left out only where nothing was left
        used = {s[1] for s in both.tolist() if s[0] == base[row, 0]}
        assert used >= {base[row, 1], *range(3, last)}


def test_codes_for_catalogues():
    sizes = [tokenize.codes_for(n) for n in (1, 64, 1000, 2048, 12101, 10**7)]
    assert sizes == [8, 8, 64, 256, 256, 256]


def test_command_writes_the_contract(shop, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["tokenize", "--data", shop, "--output", str(run), *SMALL, "--spare_codes", "5"]
    assert cli.main(arguments) == 0
    assert "60 items, levels 8 x 8 x " in capsys.readouterr().out
    sids = SemanticIds.load(str(run / "semantic_ids" / "semantic_ids.npz"))
    data = read_data(shop)
    again = tokenize.tokenize_items(data, options(spare_codes=5)).sids
    np.testing.assert_array_equal(sids.codes, again.codes)
    np.testing.assert_array_equal(sids.item_id, data.items.ids)
    assert sids.level_sizes == again.level_sizes and sids.codebook_digest == again.codebook_digest
    assert len(np.unique(sids.codes, axis=0)) == 60
    assert sids.codes[:, -1].max() == sids.level_sizes[-1] - 5 - 1 or sids.level_sizes[-1] == 8 + 5
    base = np.where(sids.codes[:, -1] < 8, sids.codes[:, -1], sids.base_codes[:, -1])
    np.testing.assert_array_equal(base, sids.base_codes[:, -1])
    written = json.loads((run / "semantic_ids" / "report.json").read_text())
    assert written["collision_rate_after"] == 0 and written["data_digest"] == data.digest
    assert json.loads((run / "tokenize.config.json").read_text())["options"]["spare_codes"] == 5
    assert json.loads((run / "tokenize.metrics.json").read_text())["metrics"] == written
    assert not list(run.rglob("*.tmp"))


def test_what_is_stored_says_what_was_trained(shop, tmp_path):
    made = tokenize.tokenize_items(read_data(shop), options())
    made.save(str(tmp_path))
    again = Tokenized.load(str(tmp_path))
    x = np.random.default_rng(0).standard_normal((20, made.tokenizer.codebooks[0].shape[1]))
    np.testing.assert_array_equal(
        again.tokenizer.quantise(x).codes, made.tokenizer.quantise(x).codes
    )
    np.testing.assert_array_equal(again.sids.base_codes, made.sids.base_codes)
    np.testing.assert_array_equal(
        again.tokenizer.quantise(again.vectorizer.fitted).codes, again.sids.base_codes
    )


def test_allowed_collisions_are_shared_sids(shop):
    made = tokenize.tokenize_items(read_data(shop), options(collisions="allow", spare_codes=9))
    assert made.sids.level_sizes == (8, 8, 8)
    np.testing.assert_array_equal(made.sids.codes, made.sids.base_codes)
    assert collisions.collision_rate(made.sids.codes) > 0


def test_new_items_get_ids_and_old_ones_keep_theirs(shop, tmp_path, capsys):
    before = without_items(shop, tmp_path / "before", set(range(50, 61)))
    run, grown = tmp_path / "run", tmp_path / "grown"
    assert cli.main(["tokenize", "--data", before, "--output", str(run), *SMALL]) == 0
    arguments = ["tokenize", "--data", shop, "--extend", str(run), "--output"]
    assert cli.main([*arguments, str(grown)]) == 0
    said = capsys.readouterr().out
    assert "11 new items: " in said and " 0 share one with another item" in said
    old = SemanticIds.load(str(run / "semantic_ids" / "semantic_ids.npz"))
    new = SemanticIds.load(str(grown / "semantic_ids" / "semantic_ids.npz"))
    np.testing.assert_array_equal(new.codes[:49], old.codes)
    np.testing.assert_array_equal(new.item_id[:49], old.item_id)
    assert set(new.item_id[49:]) == set(range(50, 61))
    assert new.level_sizes == old.level_sizes and new.codebook_digest == old.codebook_digest
    assert len(np.unique(new.codes, axis=0)) == 60
    report = json.loads((grown / "semantic_ids" / "report.json").read_text())
    assert report["items"] == 60 and report["extension"]["new_items"] == 11
    # Once more, in place: nothing is new, nothing changes.
    again = ["tokenize", "--data", shop, "--extend", str(grown), "--output", str(grown)]
    table = (grown / "semantic_ids" / "semantic_ids.npz").read_bytes()
    assert cli.main(again) == 0
    assert "0 new items" in capsys.readouterr().out
    assert (grown / "semantic_ids" / "semantic_ids.npz").read_bytes() == table


def test_items_that_left_keep_their_ids(shop, tmp_path):
    made = tokenize.tokenize_items(read_data(shop), options())
    fewer = read_data(without_items(shop, tmp_path / "fewer", {1, 2, 3}))
    kept, extension = new_items.extend(fewer, made, share=False)
    assert extension.new_items == 0 and len(kept.sids.item_id) == 60


def crowd(shop, folder, extra):
    """The shop with `extra` items more that read like the first one."""
    shutil.copytree(shop, folder)
    first = json.loads(open(f"{shop}/items.jsonl", encoding="utf-8").readline())
    with open(folder / "items.jsonl", "a", encoding="utf-8") as f:
        for i in range(extra):
            f.write(json.dumps({**first, "id": 1000 + i}) + "\n")
    return str(folder)


def test_spare_codes_run_out(shop, tmp_path, capsys):
    run, crowded = tmp_path / "run", crowd(shop, tmp_path / "crowd", 40)
    assert cli.main(["tokenize", "--data", shop, "--output", str(run), *SMALL]) == 0
    arguments = ["tokenize", "--data", crowded, "--extend", str(run), "--output"]
    table = (run / "semantic_ids" / "semantic_ids.npz").read_bytes()
    assert cli.main([*arguments, str(run)]) == 2
    error = capsys.readouterr().err
    assert "no code is left for " in error and " of 40 new items, first item 10" in error
    assert "expected --collisions allow, or a new tokenizer with more --spare_codes" in error
    assert (run / "semantic_ids" / "semantic_ids.npz").read_bytes() == table
    assert cli.main([*arguments, str(tmp_path / "shared"), "--collisions", "allow"]) == 0
    assert "40 new items" in capsys.readouterr().out
    new = SemanticIds.load(str(tmp_path / "shared" / "semantic_ids" / "semantic_ids.npz"))
    assert len(new.item_id) == 100 and 60 < len(np.unique(new.codes, axis=0)) < 100
    report = json.loads((tmp_path / "shared" / "semantic_ids" / "report.json").read_text())
    extension = report["extension"]
    assert extension["shared"] == 100 - len(np.unique(new.codes, axis=0)) > 0
    assert extension["spare"] >= 16 and sum(extension.values()) == 80  # new_items is their sum


def test_a_tokenizer_that_lets_items_share_extends_so(shop, tmp_path):
    made = tokenize.tokenize_items(read_data(shop), options(collisions="allow"))
    crowded = read_data(crowd(shop, tmp_path / "crowd", 3))
    more, extension = new_items.extend(crowded, made, share=True)
    assert extension.shared >= 2 and extension.spare == 0
    assert more.sids.level_sizes == (8, 8, 8)


def test_extend_takes_the_runs_own_options(shop, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert cli.main(["tokenize", "--data", shop, "--output", run, *SMALL]) == 0
    arguments = ["tokenize", "--data", shop, "--extend", run, "--output", str(tmp_path / "other")]
    assert cli.main([*arguments, "--levels", "2"]) == 2
    assert "expected its own options, but for --collisions" in capsys.readouterr().err
    assert cli.main([*arguments[:4], str(tmp_path / "none"), *arguments[5:]]) == 2
    assert "none/tokenize.config.json" in capsys.readouterr().err


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"levels = 9: expected 1\.\.8"):
        TokenizeOptions(levels=9)
    with pytest.raises(ValueError, match=r"method = 'vq': expected kmeans\|rqvae"):
        TokenizeOptions(method="vq")


def test_a_table_that_lacks_an_item_is_refused(shop):
    items = read_data(shop).items
    sids = SemanticIds(items.ids[:-1], np.zeros((59, 1), np.int32), (1,), "")
    with pytest.raises(ValueError, match="no semantic ID for 1 items of the data, first 60"):
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


def test_a_table_of_the_wrong_shape_is_refused(tmp_path):
    path = str(tmp_path / "semantic_ids.npz")
    codes = np.zeros((3, 2), np.int32)
    SemanticIds(np.arange(3), codes, (4, 4), "d", codes[:2]).save(path)
    with pytest.raises(ValueError, match=r"base_codes has shape \(2, 2\): expected \(3, 2\)"):
        SemanticIds.load(path)


def test_codebooks_of_another_table_are_refused(shop, tmp_path):
    folder = str(tmp_path)
    tokenize.tokenize_items(read_data(shop), options()).save(folder)
    path = os.path.join(folder, "codebooks.npz")
    other = SidTokenizer((np.zeros((8, 24), np.float32),) * 3, Layers(), Layers())
    other.save(path, (8, 8, 8))
    with pytest.raises(ValueError, match="codebooks.npz: not the codebooks of semantic_ids.npz"):
        Tokenized.load(folder)
    arrays = dict(np.load(path))
    arrays["codebook_1"] = arrays["codebook_1"] + 1
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="codebook_digest is not that of its codebooks"):
        SidTokenizer.load(path)
    np.savez(path, level_sizes=np.array([8]))
    with pytest.raises(ValueError, match="no array 'codebook_0': expected a codebooks.npz"):
        SidTokenizer.load(path)
