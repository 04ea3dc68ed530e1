"""`genrecall embed`: vectors as a file, and the comparison of encoders."""

import json

import numpy as np
import pytest
import tiny_encoder

from genrecall import cli
from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import embed, labels
from genrecall.training.semantic_ids.embed import EmbedOptions


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 60, 50, 0)
    return path


def test_vectors_are_written_and_tokenize_reads_them(shop, tmp_path, capsys):
    encoder = str(tmp_path / "encoder")
    model = tiny_encoder.write_sentence_encoder(encoder, {"pooling_mode_cls_token": True})
    out = tmp_path / "vectors"
    arguments = ["--encoder", encoder, "--template", "red {title}"]
    assert cli.main(["embed", "--data", shop, "--output", str(out), *arguments]) == 0
    assert "50 items, 16 dimensions by " in capsys.readouterr().out
    stored = dict(np.load(out / "vectors.npz"))
    items = read_data(shop).items
    np.testing.assert_array_equal(stored["item_id"], items.ids)
    for row in (0, 49):
        want = tiny_encoder.hidden_states(model, f"red {items.titles[row]}")[0].numpy()
        got = stored["vectors"][row]
        np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=1e-5)
    run = ["tokenize", "--data", shop, "--output", str(tmp_path / "run"), "--levels", "2"]
    assert cli.main([*run, "--codes", "8", "--encoder", str(out / "vectors.npz")]) == 0


def test_comparison_by_brute_force(shop, tmp_path, capsys):
    data = read_data(shop)
    kinds = labels.item_labels(data.items)
    # Vectors that know the category and nothing else.
    perfect = np.eye(labels.item_labels(data.items)["category"].max() + 1)[kinds["category"]]
    np.save(tmp_path / "perfect.npy", perfect.astype(np.float32))
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    np.save(tmp_path / "random.npy", x)
    sources = ["tfidf", "cooccurrence", str(tmp_path / "perfect.npy"), str(tmp_path / "random.npy")]
    out = tmp_path / "out"
    arguments = ["embed", "--data", shop, "--output", str(out), "--neighbours", "3", "--compare"]
    assert cli.main([*arguments, *sources]) == 0
    said = capsys.readouterr().out
    table = json.loads((out / "comparison.json").read_text())["table"]
    assert set(table) == {"by chance", *sources}
    assert said.endswith((out / "comparison.txt").read_text()) and "perfect.npy" in said
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(50)
    near = np.argsort(-cosine, axis=1)[:, :3]
    want = (kinds["category"][near] == kinds["category"][:, None]).mean()
    assert table[sources[3]]["category"] == pytest.approx(want)
    sizes = np.bincount(kinds["category"])[kinds["category"]]
    assert table["by chance"]["category"] == pytest.approx(((sizes - 1) / 49).mean())
    assert table[sources[2]]["category"] > 0.9
    assert table["tfidf"]["category"] > 2 * table["by chance"]["category"]
    assert table["cooccurrence"]["next item"] > 2 * table["by chance"]["next item"]
    assert table["by chance"]["next item"] == pytest.approx(3 / 49)


def test_bad_sources_are_refused(shop, tmp_path, capsys):
    bad = tmp_path / "bad.npy"
    cases = [
        (
            np.zeros((49, 3)),
            r"bad.npy: float64 \[49, 3\]: expected floats \[50, D\], one row an item",
        ),
        (np.zeros((50, 3), np.int64), r"bad.npy: int64 \[50, 3\]: expected floats"),
        (np.full((50, 3), np.nan), "bad.npy: expected finite numbers"),
    ]
    data = read_data(shop)
    for array, message in cases:
        np.save(bad, array)
        with pytest.raises(ValueError, match=message):
            embed.source_vectors(data, str(bad), EmbedOptions())
    bad.write_bytes(b"")
    arguments = ["embed", "--data", shop, "--output", str(tmp_path / "out"), "--compare"]
    assert cli.main([*arguments, str(bad)]) == 2
    assert "bad.npy: not a readable .npy file" in capsys.readouterr().err
    assert cli.main([*arguments, "nowhere"]) == 2
    assert "encoder = 'nowhere': expected tfidf, a folder or an .npz" in capsys.readouterr().err


def test_labels_that_tell_nothing_are_left_out(tmp_path):
    rows = [
        {"id": 1, "title": "a", "category": "X", "attributes": ["one", "N/A"]},
        {"id": 2, "title": "b", "category": "X", "attributes": ["two", "Unknown"]},
        {"id": 3, "title": "c", "attributes": ["one", "leaf"]},
        {"id": 4, "title": "d", "attributes": []},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "sequences.txt").write_text("1 1 2\n")
    kinds = labels.item_labels(read_data(str(tmp_path)).items)
    # All categories that are known are one; of the last attributes only one is known.
    assert list(kinds) == ["first attribute"]
    assert kinds["first attribute"].tolist()[3] == -1
    table = embed.compare(read_data(str(tmp_path)), ["tfidf"], EmbedOptions(neighbours=2))
    assert table["tfidf"]["next item"] is None
    assert "-" in embed.as_text(table, 2)
