"""The report of semantic IDs: its measures against brute force, its text, its page."""

import html.parser
import itertools
import json

import numpy as np
import pytest

from genrecall.training.dataset import splits, synth
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import labels, report, report_page, tokenize
from genrecall.training.semantic_ids.residual_kmeans import fit_codebooks
from genrecall.training.semantic_ids.sid_tokenizer import SidTokenizer
from genrecall.training.semantic_ids.vectorizer import VectorOptions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(data, Tokenized, report) of a generated shop."""
    path = str(tmp_path_factory.mktemp("shop"))
    synth.write_shop(path, 80, 70, 0)
    data = read_data(path)
    vectors = VectorOptions(dim=16, collaborative_dim=8)
    tokenized = tokenize.tokenize_items(data, tokenize.TokenizeOptions(codes=8, vectors=vectors))
    return data, tokenized, report.measure(data, tokenized, tokenized.vectorizer.fitted)


def test_collisions_use_and_perplexity(made):
    _, tokenized, measured = made
    base = [tuple(c) for c in tokenized.sids.base_codes.tolist()]
    assert measured["collision_rate_before"] == pytest.approx(1 - len(set(base)) / 70)
    assert measured["collision_rate_after"] == 0
    assert measured["items_in_collisions"] == sum(base.count(b) > 1 for b in base)
    assert measured["largest_collision"] == max(base.count(b) for b in base)
    assert measured["extended_items"] == 70 - len(set(base))
    for level in range(4):
        codes = [b[level] for b in base]
        share = np.array([codes.count(c) / 70 for c in set(codes)])
        assert measured["codebook_use"][level] == len(set(codes)) / 8
        perplexity = np.prod(share**-share)
        assert measured["codebook_perplexity"][level] == pytest.approx(perplexity)
        assert sorted(measured["code_counts"][level]) == sorted(codes.count(c) for c in range(8))


def test_prefixes(made):
    _, tokenized, measured = made
    for depth in range(1, 5):
        prefixes = [tuple(c[:depth]) for c in tokenized.sids.codes.tolist()]
        assert measured["prefixes"][depth - 1] == len(set(prefixes))
        assert measured["largest_prefix"][depth - 1] == max(map(prefixes.count, prefixes))
        alone = sum(prefixes.count(p) == 1 for p in prefixes) / 70
        assert measured["alone_under_prefix"][depth - 1] == pytest.approx(alone)
    assert measured["alone_under_prefix"][-1] == 1


def test_reconstruction_error_of_what_is_known():
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    tokenizer = SidTokenizer(tuple(fit_codebooks(x, 2, 50, 0)))
    codes = tokenizer.quantise(x).codes
    errors = report.reconstruction_error(tokenizer, codes, x)
    assert errors[1] < 1e-6  # a code each
    nothing = SidTokenizer((x.mean(axis=0, keepdims=True),))
    assert report.reconstruction_error(nothing, codes[:, :1] * 0, x)[0] == pytest.approx(1)


def test_next_items_by_brute_force(made):
    data, tokenized, measured = made
    lines = splits.clean_lines(data.events)
    sid = dict(zip(tokenized.sids.item_id.tolist(), tokenized.sids.codes.tolist(), strict=True))
    users = lines.evaluated("valid")
    both = [lines.items_of(u)[lines.visible("valid")[u] - 1 :][:2].tolist() for u in users]
    assert measured["next_item"]["users"] == len(users) > 20
    for depth in range(1, 5):
        same = np.mean([sid[a][:depth] == sid[b][:depth] for a, b in both])
        assert measured["next_item"]["levels"][depth - 1] == pytest.approx(same)
        chance = np.mean([sid[a][:depth] == sid[b][:depth] for a, _ in both for _, b in both])
        assert measured["next_item"]["chance"][depth - 1] == pytest.approx(chance)


def test_group_purity_by_brute_force():
    rng = np.random.default_rng(0)
    values, groups = rng.integers(-1, 3, 60), rng.integers(0, 12, 60)
    shares = []
    for i in np.flatnonzero(values >= 0):
        mates = [j for j in range(60) if j != i and groups[j] == groups[i] and values[j] >= 0]
        if mates:
            shares.append(np.mean([values[j] == values[i] for j in mates]))
    assert labels.group_purity(values, groups) == pytest.approx(np.mean(shares))
    assert np.isnan(labels.group_purity(values, np.arange(60)))


def test_examples_name_items_that_share_prefixes(made):
    data, tokenized, measured = made
    sid_of = {
        report.sid_text(c): data.items.titles[r]
        for r, c in enumerate(tokenized.sids.codes.tolist())
    }
    assert len(measured["examples"]) == 8
    for example in measured["examples"]:
        assert sid_of[example["sid"]] == example["title"]
        own = example["sid"].split()
        for mate in example["mates"]:
            assert sid_of[mate["sid"]] == mate["title"]
            both = zip(own, mate["sid"].split(), strict=True)
            assert len(list(itertools.takewhile(lambda p: p[0] == p[1], both))) == mate["shared"]
        depths = [m["shared"] for m in example["mates"]]
        assert depths == sorted(depths, reverse=True) and depths


class Page(html.parser.HTMLParser):
    """Tags opened, tags left open, what is loaded from elsewhere, and the text."""

    VOID = {"meta", "br", "path", "use"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.loaded, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_beside_it(made, tmp_path):
    data, _, measured = made
    title = '<b>"Ünïcode" & Söhne</b>'
    measured = {**measured, "examples": [{**measured["examples"][0], "title": title}]}
    report_page.write(str(tmp_path), measured)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not page.loaded
    assert page.tags.count("svg") == 4 and "script" not in page.tags
    said = "".join(page.text)
    assert title in said and f"{measured['collision_rate_before']:.2%}" in said
    assert report_page.as_html(measured) == text
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == measured
    assert title in (tmp_path / "report.txt").read_text(encoding="utf-8")


def test_one_item_and_no_target(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": 7, "title": "only"}\n')
    (tmp_path / "sequences.txt").write_text("1 7\n")
    data = read_data(str(tmp_path))
    tokenized = tokenize.tokenize_items(data, tokenize.TokenizeOptions(levels=2))
    measured = report.measure(data, tokenized, tokenized.vectorizer.fitted)
    assert measured["next_item"] == {"users": 0, "levels": [None, None], "chance": [None, None]}
    assert measured["purity"] == {} and measured["items"] == 1
    report_page.write(str(tmp_path / "out"), measured)
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
