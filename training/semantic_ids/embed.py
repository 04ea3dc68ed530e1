"""`genrecall embed`: items to vectors, and how well encoders tell kinds of items apart. Knows no
codes and no decoder.

Writes OUT/vectors.npz (item_id int64 [N], vectors float32 [N, D] unit rows, encoder,
encoder_digest), which `genrecall tokenize --encoder OUT/vectors.npz` reads. With --compare:
OUT/comparison.json, comparison.txt and comparison.png instead.
"""

import os
from dataclasses import dataclass, replace

import numpy as np

from genrecall.training import config, files, manifest
from genrecall.training.config import option
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import charts, labels, text
from genrecall.training.semantic_ids.cooccurrence import CooccurrenceModel
from genrecall.training.semantic_ids.tfidf import TfidfEncoder
from genrecall.training.semantic_ids.vector_math import nearest_others, unit_rows
from genrecall.training.semantic_ids.vectorizer import (
    VectorOptions,
    text_vectors,
    training_sequences,
)

NEXT_ITEM = "next item"


@dataclass(frozen=True)
class EmbedOptions:
    """What is made of the items, and how it is compared."""

    neighbours: int = option(10, "nearest neighbours that are compared", low=1, high=1000)
    seed: int = option(0, "of the randomised SVD", low=0, high=2**31 - 1)
    vectors: VectorOptions = config.nested(VectorOptions)

    def __post_init__(self):
        config.check(self)


def source_vectors(data, source, options):
    """Vectors of all items by one source.

    Args:
      data: data_folder.DataSet.
      source: tfidf, cooccurrence (training part of the lines), the folder of an encoder, an .npz of
        `genrecall embed`, or an .npy float [N, D] in the order of items.jsonl.
      options: EmbedOptions.

    Returns:
      (float32 [N, D] unit or zero rows, digest of the encoder).

    Raises:
      FileNotFoundError, ValueError: no such source, or not one vector an item.
    """
    if source == "cooccurrence":
        chosen = options.vectors
        sequences = training_sequences(data)
        shape = chosen.collaborative_dim, chosen.window
        return CooccurrenceModel.fit(sequences, data.items.ids, *shape, options.seed)[1], ""
    if source.endswith(".npy"):
        return _npy_vectors(source, len(data.items)), ""
    tfidf = None
    if source == "tfidf":
        texts = text.item_texts(data.items, options.vectors.text)
        tfidf = TfidfEncoder.fit(texts, options.vectors.dim, options.seed)
    return text_vectors(data.items, replace(options.vectors, encoder=source), tfidf)


def compare(data, sources, options, measured=None):
    """How often the nearest neighbours of an item are of its kind, by each source.

    Args:
      data: data_folder.DataSet.
      sources: see source_vectors.
      options: EmbedOptions.
      measured: called with (source, its row) as soon as it is there.

    Returns:
      dict of "by chance" and every source -> {measure: share, or None where nothing has one}: the
      labels of labels.item_labels, and `next item`: how often a user's validation target is among
      the neighbours of the last item before it.
    """
    kinds = labels.item_labels(data.items)
    n, k = len(data.items), min(options.neighbours, len(data.items) - 1)
    lines = splits.clean_lines(data.events)
    users = lines.evaluated("valid")
    at = lines.begin[users] + lines.visible("valid")[users]
    last, target = data.items.rows(lines.item[at - 1]), data.items.rows(lines.item[at])
    table = {"by chance": {name: labels.chance(values) for name, values in kinds.items()}}
    table["by chance"][NEXT_ITEM] = k / (n - 1) if n > 1 and len(users) else None
    for source in sources:
        near = nearest_others(source_vectors(data, source, options)[0], k)
        row = {name: labels.same_label(values, near) for name, values in kinds.items()}
        found = (near[last] == target[:, None]).any(axis=1)
        row[NEXT_ITEM] = float(found.mean()) if len(users) else None
        table[source] = row
        if measured:
            measured(source, row)
    return table


def as_text(table, k):
    """The comparison as lines for a terminal."""
    names = list(next(iter(table.values())))
    wide = max(len(short_name(s)) for s in table)
    lines = [f"{'':{wide}}  " + "  ".join(f"{name:>15}" for name in names)]
    for source, row in table.items():
        cells = "  ".join(
            f"{'-' if row[name] is None else format(row[name], '.1%'):>15}" for name in names
        )
        lines.append(f"{short_name(source):{wide}}  {cells}")
    note = f"share of the {k} nearest neighbours that have the same; {NEXT_ITEM}: share of users"
    lines.append(f"({note} whose validation target is among the {k} nearest to their last item)")
    return "\n".join(lines) + "\n"


def short_name(source):
    """A source as a table shows it: the last part of a path."""
    return os.path.basename(os.path.normpath(source))


def configure(parser):
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--compare",
        nargs="+",
        metavar="SOURCE",
        help="instead of writing vectors, compare: tfidf, cooccurrence, encoder folders, .npz of "
        "`genrecall embed`, .npy [items, D] in the order of items.jsonl",
    )
    config.add_arguments(parser, EmbedOptions, skip=("collaborative",))


def main(args):
    options = config.from_args(EmbedOptions, args)
    data = read_data(args.data)
    manifest.write(args.output, "embed", options, data=data, seed=options.seed)
    if args.compare:
        return _compare(data, args, options)
    source = options.vectors.encoder
    vectors, digest = source_vectors(data, source, options)
    path = os.path.join(args.output, "vectors.npz")
    files.write_npz(
        path,
        item_id=data.items.ids,
        vectors=vectors,
        encoder=np.array(source),
        encoder_digest=np.array(digest),
    )
    manifest.finish(args.output, "embed", {"items": len(vectors), "dim": vectors.shape[1]})
    print(f"{path}: {len(vectors)} items, {vectors.shape[1]} dimensions by {source}")


def _compare(data, args, options):
    table = compare(data, args.compare, options, lambda source, _: print(f"{source}: done"))
    k = min(options.neighbours, len(data.items) - 1)
    said = as_text(table, k)
    files.write_json(
        os.path.join(args.output, "comparison.json"), {"neighbours": k, "table": table}
    )
    files.write_text(os.path.join(args.output, "comparison.txt"), said)
    shown = {short_name(source): row for source, row in table.items()}
    figure = charts.comparison(shown, list(next(iter(table.values()))), k)
    with files.replacing(os.path.join(args.output, "comparison.png")) as beside:
        figure.savefig(beside, format="png", dpi=150)
    manifest.finish(args.output, "embed", {"neighbours": k, "table": table})
    print(said, end="")


def _npy_vectors(path, items):
    try:
        vectors = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npy file: {error}") from error
    if vectors.ndim != 2 or len(vectors) != items or not np.issubdtype(vectors.dtype, np.floating):
        found = f"{vectors.dtype} {list(vectors.shape)}"
        raise ValueError(f"{path}: {found}: expected floats [{items}, D], one row an item")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{path}: expected finite numbers")
    return unit_rows(vectors)
