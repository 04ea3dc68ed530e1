"""Item text, and items to vectors: templates, encoders, co-occurrence, the fitted vectorizer."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tiny_encoder
import torch

from genrecall.training.dataset import synth
from genrecall.training.dataset.data_folder import Items, read_data
from genrecall.training.semantic_ids import cooccurrence, vector_math
from genrecall.training.semantic_ids.cooccurrence import CooccurrenceModel
from genrecall.training.semantic_ids.encoder_folder import FolderEncoder
from genrecall.training.semantic_ids.text import TextOptions, item_texts
from genrecall.training.semantic_ids.tfidf import TfidfEncoder
from genrecall.training.semantic_ids.vectorizer import Vectorizer, VectorOptions, stored_vectors


def items_of(*rows):
    """Items of (title, attributes, category, price) rows, ids from 1."""
    ids = np.arange(1, len(rows) + 1)
    titles, attributes, categories, price = zip(*rows, strict=True)
    ecpm = np.full(len(rows), np.nan, np.float32)
    row_of = {int(i): r for r, i in enumerate(ids)}
    columns = list(titles), list(attributes), list(categories)
    return Items(ids, *columns, np.array(price, np.float32), ecpm, row_of)


def text_of(template, title="", attributes=(), category="", price=np.nan, separator=". "):
    return item_texts(
        items_of((title, attributes, category, price)), TextOptions(template, separator)
    )[0]


def test_item_text_by_default():
    items = items_of(
        ("Red lipstick", ("Lux", "Makeup", "Lux"), "Makeup", np.nan),
        ("", ("Unknown", "Nails"), "", np.nan),
        (" ", (), "", np.nan),
        ("Ends so.", ("A",), "", np.nan),
    )
    assert item_texts(items) == [
        "Red lipstick. Makeup. Lux",
        "Nails",
        "unknown item",
        "Ends so. A",
    ]


@pytest.mark.parametrize(
    ("template", "fields", "want"),
    [
        ("{title} | by {attributes[0]} | {price} dollars", {"title": "Hose"}, "Hose"),
        ("{title} | {price} dollars", {"title": "Hose", "price": 12.5}, "Hose. 12.5 dollars"),
        ("{price}", {"price": 10.0}, "10"),
        ("{attributes[0]} {title}", {"title": "Hose", "attributes": ("Unknown",)}, "unknown item"),
        ("{attributes[-1]}|{attributes[1:]}", {"attributes": ("a", "b", "c")}, "c. b, c"),
        ("{attributes[:1]}|{attributes[5]}", {"attributes": ("a", "b", "c")}, "a"),
        ("{category}: {title}", {"title": "Ünï", "category": "日本"}, "日本: Ünï"),
    ],
)
def test_templates(template, fields, want):
    assert text_of(template, **fields) == want


@pytest.mark.parametrize("missing", range(16))
def test_missing_fields_leave_nothing_behind(missing):
    fields = {"title": "T", "attributes": ("A", "B"), "category": "C", "price": 3.0}
    empty = {"title": "", "attributes": (), "category": "unknown", "price": np.nan}
    given = {k: empty[k] if missing >> i & 1 else v for i, (k, v) in enumerate(fields.items())}
    said = text_of("{title}|({category})|{price} $|{attributes}", **given, separator=" - ")
    want = [given["title"], "(C)", "3 $", "A, B"]
    gone = [missing & 1, missing & 4, missing & 8, missing & 2]
    kept = [w for w, g in zip(want, gone, strict=True) if not g]
    assert said == (" - ".join(kept) or "unknown item")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{titel}", r"template = '\{titel\}': unknown field \{titel\}; expected one of title"),
        ("{title", "a bracket without its partner"),
        ("title}", "a bracket without its partner"),
        ("no field | at all", r"expected at least one \{field\}"),
        ("{title[0]}", "only attributes is a list"),
        ("{attributes[x]}", r"unknown field \{attributes\[x\]\}"),
    ],
)
def test_bad_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        TextOptions(template)


def test_similar_texts_have_near_vectors():
    texts = ["red nail polish", "blue nail polish", "garden hose", "garden rake", "läppstift", ""]
    encoder = TfidfEncoder.fit(texts, 4, seed=0)
    x = encoder.encode(texts)
    assert x.dtype == np.float32 and x.shape[0] == 6 and not x[5].any()
    assert x[0] @ x[1] > x[0] @ x[2] and x[2] @ x[3] > x[2] @ x[1]
    np.testing.assert_array_equal(x, TfidfEncoder.fit(texts, 4, seed=0).encode(texts))


def test_tfidf_is_scikit_learns():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [f"word{i % 7} other{i % 5} läppstift" for i in range(60)]
    words = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"
    ).fit_transform(texts)
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), min_df=2, sublinear_tf=True
    ).fit_transform(texts)
    joined = np.concatenate([words.toarray(), 0.5 * characters.toarray()], axis=1)
    want = vector_math.unit_rows(joined) @ vector_math.unit_rows(joined).T
    # As many axes as the matrix has ranks: nothing is lost.
    got = TfidfEncoder.fit(texts, 59, seed=0).encode(texts)
    np.testing.assert_allclose(got @ got.T, want, atol=2e-3)  # axes are kept in float16


def test_a_stored_tfidf_encoder_encodes_new_texts_alike():
    encoder = TfidfEncoder.fit(["red nail polish", "garden hose", "日本 茶"], 2, seed=0)
    again = TfidfEncoder.from_arrays(encoder.arrays())
    new = ["red hose", "茶", "xyzzy"]
    np.testing.assert_array_equal(again.encode(new), encoder.encode(new))
    assert not encoder.encode(["xyzzy"]).any()


def test_degenerate_texts():
    assert TfidfEncoder.fit(["only"], 8, 0).encode(["only"]).shape[0] == 1
    # Punctuation alone is no word, but it has characters.
    assert TfidfEncoder.fit(["???", "!!!"], 8, 0).encode(["???", "!!!"]).any()
    # Sixty texts without a term in common keep their own terms.
    alone = [f"{chr(0x4E00 + i)}" * 3 for i in range(60)]
    assert TfidfEncoder.fit(alone, 59, 0).encode(alone).any()
    with pytest.raises(ValueError, match="the item texts have no word"):
        TfidfEncoder.fit(["", ""], 8, 0)


POOLED = {
    "cls": lambda h: h[0],
    "max": lambda h: h.amax(0),
    "mean": lambda h: h.mean(0),
    "mean_sqrt_len": lambda h: h.sum(0) / len(h) ** 0.5,
    "lasttoken": lambda h: h[-1],
    "weightedmean": lambda h: (
        (h * torch.arange(1.0, len(h) + 1)[:, None]).sum(0) / sum(range(1, len(h) + 1))
    ),
}
TEXTS = ["red nail polish", "blue", "garden hose", ""]


@pytest.mark.parametrize("name", POOLED)
def test_a_sentence_transformers_folder_pools_as_it_says(tmp_path, name):
    suffix = {"cls": "_token", "lasttoken": ""}.get(name, "_tokens")
    every = {f"pooling_mode_{n}{s}": False for n, s in (("cls", "_token"), ("mean", "_tokens"))}
    pooling = {"word_embedding_dimension": 16, **every, f"pooling_mode_{name}{suffix}": True}
    model = tiny_encoder.write_sentence_encoder(str(tmp_path), pooling)
    got = FolderEncoder(str(tmp_path)).encode(TEXTS)
    want = [POOLED[name](tiny_encoder.hidden_states(model, t)).numpy() for t in TEXTS]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_dense_and_normalize_modules_and_several_poolings(tmp_path):
    torch.manual_seed(3)
    weight = torch.randn(5, 32)
    model = tiny_encoder.write_sentence_encoder(
        str(tmp_path), {"pooling_mode": ["mean", "cls"]}, normalize=True, dense=(weight, "Tanh")
    )
    got = FolderEncoder(str(tmp_path)).encode(TEXTS)
    for row, said in zip(got, TEXTS, strict=True):
        hidden = tiny_encoder.hidden_states(model, said)
        want = torch.tanh(weight @ torch.cat([hidden[0], hidden.mean(0)])).numpy()
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-5)


def test_length_and_case_of_the_folder_count(tmp_path):
    settings = {"max_seq_length": 3, "do_lower_case": True}
    mean = {"pooling_mode_mean_tokens": True}
    model = tiny_encoder.write_sentence_encoder(str(tmp_path), mean, **settings)
    got = FolderEncoder(str(tmp_path)).encode(["RED Nail polish hose"])
    want = tiny_encoder.hidden_states(model, "red nail").mean(0).numpy()
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_a_plain_folder_is_mean_pooled_and_batches_do_not_matter(tmp_path):
    model = tiny_encoder.write_encoder(str(tmp_path))
    texts = [" ".join(["red", "blue", "hose"][: i % 4]) for i in range(150)]
    got = FolderEncoder(str(tmp_path)).encode(texts)
    for i in (0, 1, 2, 3, 149):
        want = tiny_encoder.hidden_states(model, texts[i]).mean(0).numpy()
        np.testing.assert_allclose(got[i], want, atol=1e-5)


def test_what_is_no_encoder_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json; expected a Transformers or"):
        FolderEncoder(str(tmp_path))
    folder = str(tmp_path / "x")
    tiny_encoder.write_sentence_encoder(folder, {"pooling_mode_mean_tokens": False})
    with pytest.raises(ValueError, match="1_Pooling/config.json: pooling none: expected cls, max"):
        FolderEncoder(folder)
    tiny_encoder.write_json(folder, "1_Pooling/config.json", {"pooling_mode": "attention"})
    with pytest.raises(ValueError, match="pooling attention: expected cls, max"):
        FolderEncoder(folder)
    tiny_encoder.write_json(folder, "modules.json", [{"type": "x.WordWeights", "path": ""}])
    with pytest.raises(ValueError, match=r"modules.json: module 'x.WordWeights': expected Trans"):
        FolderEncoder(folder)
    tiny_encoder.write_json(folder, "modules.json", [])
    with pytest.raises(ValueError, match="modules.json: no Transformer module"):
        FolderEncoder(folder)
    (tmp_path / "x" / "modules.json").write_text("[")
    with pytest.raises(ValueError, match="modules.json: not JSON"):
        FolderEncoder(folder)


def test_an_unknown_activation_is_refused(tmp_path):
    mean = {"pooling_mode_mean_tokens": True}
    weight = torch.zeros(2, 16)
    tiny_encoder.write_sentence_encoder(str(tmp_path), mean, dense=(weight, "Mish"))
    with pytest.raises(ValueError, match="activation_function = 'Mish': expected Tanh"):
        FolderEncoder(str(tmp_path))


def test_pair_counts_by_brute_force():
    rng = np.random.default_rng(0)
    ids = np.array([5, 7, 11, 13, 17])
    sequences = [rng.choice(ids, rng.integers(0, 7)) for _ in range(30)]
    row_of = {int(i): r for r, i in enumerate(ids[:4])}  # 17 has no row
    want = np.zeros((4, 4))
    for s in sequences:
        for i in range(len(s)):
            for j in range(len(s)):
                known = s[i] in row_of and s[j] in row_of and s[i] != s[j]
                if known and 0 < abs(i - j) <= 2:
                    want[row_of[s[i]], row_of[s[j]]] += 1 / abs(i - j)
    got = cooccurrence.pair_counts(sequences, row_of, window=2)
    np.testing.assert_allclose(got.toarray(), want)
    assert not cooccurrence.pair_counts([], row_of, 2).nnz


def test_cooccurrence_sees_neighbours():
    ids = np.arange(12) * 10
    sequences = [ids[:3]] * 5 + [ids[3:5]] * 5
    x = CooccurrenceModel.fit(sequences, ids, 4, 4, seed=0)[1]
    assert x.shape == (12, 4)
    assert x[0] @ x[1] > 0.2 > 0.1 > abs(x[3] @ x[0]) and not x[5].any()
    assert not CooccurrenceModel.fit([], ids, 3, 4, seed=0)[1].any()


def test_an_item_that_comes_later_stands_where_its_neighbours_do():
    rng = np.random.default_rng(0)
    ids = np.arange(40)
    groups = ids // 10
    sequences = [rng.permutation(ids[groups == rng.integers(4)])[:5] for _ in range(400)]
    model, x = CooccurrenceModel.fit(sequences, ids, 8, 4, seed=0)
    model = CooccurrenceModel.from_arrays(model.arrays())
    grown = sequences + [np.array([3, 99, 5])] * 3 + [np.array([98])]
    new = model.place(grown, np.array([99, 98]))
    similarity = (x @ new[0]).reshape(4, 10).mean(axis=1)
    assert similarity.argmax() == 0 and not new[1].any()
    # An item of the fit, placed as if it were new, lands on itself.
    own = [np.where(s == 7, 99, s) for s in sequences]
    placed = model.place(own, np.array([99]))[0]
    assert placed @ x[7] > 0.98


def test_nearest_others_leave_the_row_itself_out():
    x = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1, 2]]
    near = vector_math.nearest_others(x, 2)
    assert near.shape == (6, 2)
    assert all(row not in near[row] for row in range(6))
    assert set(near[0]) == {1, 2} and 4 in near[3]
    assert vector_math.nearest_others(x[:1], 5).shape == (1, 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 60, 50, 0)
    return read_data(path)


def grown(shop, folder, new):
    """(data before the last `new` items came, data now): the same events but for theirs."""
    path = shop.path
    shutil.copytree(path, folder)
    ids = {int(i) for i in shop.items.ids[-new:]}
    kept = [
        line
        for line in open(f"{path}/items.jsonl", encoding="utf-8")
        if json.loads(line)["id"] not in ids
    ]
    (folder / "items.jsonl").write_text("".join(kept), encoding="utf-8")
    header, *events = open(f"{path}/events.csv", encoding="utf-8")
    column = header.strip().split(",").index("item_id")
    events = [e for e in events if int(e.split(",")[column]) not in ids]
    (folder / "events.csv").write_text(header + "".join(events), encoding="utf-8")
    return read_data(str(folder)), shop


def test_a_stored_vectorizer_places_new_items(shop, tmp_path):
    before, now = grown(shop, tmp_path / "before", 5)
    fitted = Vectorizer.fit(before, VectorOptions(dim=16, collaborative_dim=8), seed=0)
    fitted.save(str(tmp_path / "v.npz"), "digest")
    again, digest = Vectorizer.load(str(tmp_path / "v.npz"))
    assert digest == "digest"
    rows = np.arange(50)
    vectors = again.vectors_of(now, rows)
    np.testing.assert_array_equal(vectors[:45], fitted.fitted)  # whatever happened to them since
    np.testing.assert_array_equal(vectors, fitted.vectors_of(now, rows))
    said = np.linalg.norm(vectors[:, :16], axis=1)
    beside = np.linalg.norm(vectors[:, 16:], axis=1)
    np.testing.assert_allclose(said, 1, atol=1e-5)
    np.testing.assert_allclose(beside, 1, atol=1e-5)


def test_an_item_nobody_took_stands_with_those_that_read_alike(shop):
    alone = dataclasses.replace(shop, events=shop.events)
    options = VectorOptions(dim=16, collaborative_dim=8)
    model = Vectorizer.fit(alone, options, seed=0)
    # The last item again, under a new id that occurs in no line.
    twice = alone.items.take([*range(50), 49])
    ids = twice.ids.copy()
    ids[50] = 10**6
    twice = dataclasses.replace(twice, ids=ids, row_of={int(i): r for r, i in enumerate(ids)})
    placed = model.vectors_of(dataclasses.replace(alone, items=twice), [50])[0]
    np.testing.assert_allclose(placed[:16], model.fitted[49, :16], atol=1e-5)
    assert placed[16:] @ model.fitted[49, 16:] > 0.3


def test_text_alone(shop):
    vectors = Vectorizer.fit(shop, VectorOptions(dim=16, collaborative=0.0), seed=0).fitted
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_another_encoder_in_the_same_folder_is_refused(shop, tmp_path):
    folder = str(tmp_path / "encoder")
    tiny_encoder.write_encoder(folder)
    before, now = grown(shop, tmp_path / "before", 5)
    model = Vectorizer.fit(before, VectorOptions(encoder=folder, collaborative=0.0), seed=0)
    assert model.vectors_of(now, np.arange(50)).shape == (50, tiny_encoder.HIDDEN)
    tiny_encoder.write_encoder(folder, seed=1)
    with pytest.raises(ValueError, match=r"digest .*: expected .*, the encoder that the codes"):
        model.vectors_of(now, np.arange(50))
    with pytest.raises(FileNotFoundError, match="encoder = 'nowhere': expected tfidf, a folder or"):
        Vectorizer.fit(shop, VectorOptions(encoder="nowhere"), seed=0)


def test_stored_vectors_are_checked(shop, tmp_path):
    path = str(tmp_path / "v.npz")
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    order = np.random.default_rng(1).permutation(50)
    digest = np.array("d")
    np.savez(path, item_id=shop.items.ids[order], vectors=x[order], encoder_digest=digest)
    got, named = stored_vectors(path, shop.items)
    np.testing.assert_allclose(got, vector_math.unit_rows(x))
    assert named == "d"
    np.savez(path, item_id=shop.items.ids[1:], vectors=x[1:], encoder_digest=digest)
    with pytest.raises(
        ValueError, match=rf"v.npz: no vector for 1 items, first {shop.items.ids[0]}"
    ):
        stored_vectors(path, shop.items)
    np.savez(path, item_id=shop.items.ids)
    with pytest.raises(
        ValueError, match="no array 'encoder_digest': expected an .npz of `genrecall"
    ):
        stored_vectors(path, shop.items)


def test_what_is_no_vectorizer_is_refused(tmp_path):
    path = str(tmp_path / "vectorizer.npz")
    np.savez(path, x=np.zeros(3))
    with pytest.raises(
        ValueError, match="vectorizer.npz: expected a vectorizer.npz, but: 'options'|'t"
    ):
        Vectorizer.load(path)
