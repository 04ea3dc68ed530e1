"""`genrecall tokenize`: every item of a data folder gets a semantic ID. Knows no decoder and no
vocabulary.

Writes RUN/semantic_ids/:
  codebooks.npz      codebook_<level> float32 [C, D]; level_sizes int32 [L]; codebook_digest
  semantic_ids.npz   item_id int64 [N], codes int32 [N, L], base_codes int32 [N, L] (before
  collisions were resolved),
                     level_sizes int32 [L], codebook_digest
  report.json        collision rates, codebook use, options, digests
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass

import numpy as np

from genrecall.training import files
from genrecall.training.dataset import splits
from genrecall.training.dataset.data_folder import read_data
from genrecall.training.semantic_ids import residual_kmeans, text


@dataclass(frozen=True)
class TokenizeOptions:
    """collaborative: weight of the co-occurrence vectors beside the text's, 0 turns them off;
    codes 0: by catalogue size.
    """

    levels: int = 4
    codes: int = 0
    spare_codes: int = 16
    encoder: str | None = None
    dim: int = 128
    collaborative: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("levels", 1, 8),
            ("codes", 0, 32768),
            ("spare_codes", 0, 32767),
            ("dim", 1, 4096),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}: expected {low}..{high}")
        if not 0 <= self.collaborative <= 10:
            raise ValueError(f"collaborative = {self.collaborative}: expected 0..10")


@dataclass(frozen=True)
class SemanticIds:
    """The item -> SID table of a catalogue.

    item_id int64 [N]; codes int32 [N, L]; level_sizes tuple of L ints, spare codes included;
    codebook_digest: hex.
    """

    item_id: np.ndarray
    codes: np.ndarray
    level_sizes: tuple
    codebook_digest: str

    @staticmethod
    def load(path):
        """Reads a semantic_ids.npz.

        Raises:
          FileNotFoundError: no such file.
          ValueError: it is damaged, or another kind of file.
        """
        arrays = files.read_npz(path)
        missing = {"item_id", "codes", "level_sizes", "codebook_digest"} - set(arrays)
        if missing:
            raise ValueError(
                f"{path}: no array {sorted(missing)[0]!r}: expected a semantic_ids.npz"
            )
        sids = SemanticIds(
            arrays["item_id"],
            arrays["codes"],
            tuple(arrays["level_sizes"].tolist()),
            str(arrays["codebook_digest"]),
        )
        expected = len(sids.item_id), len(sids.level_sizes)
        if sids.codes.shape != expected:
            raise ValueError(f"{path}: codes has shape {sids.codes.shape}: expected {expected}")
        return sids

    def check_items(self, items, path):
        """ValueError unless every item of the data folder has a SID."""
        missing = np.setdiff1d(items.ids, self.item_id)
        if len(missing):
            raise ValueError(
                f"{path}: no semantic ID for {len(missing)} items of the data, first {missing[0]}"
            )


def codes_for(num_items):
    """Codes per level for a catalogue: 256 from 2,048 items on, below that the largest power of
    two <= items / 8.
    """
    return int(min(256, max(8, 2 ** int(np.log2(max(num_items / 8, 1))))))


def item_vectors(data, options):
    """What the codes are cut from: text vectors, and beside them the weighted co-occurrence
    vectors. float32 [N, D].
    """
    vectors = text.embed_texts(
        text.item_texts(data.items), options.encoder, options.dim, options.seed
    )
    if options.collaborative:
        sequences = splits.training_sequences(splits.clean_lines(data.events))
        together = text.cooccurrence_vectors(
            sequences, data.items.row_of, options.dim * 3 // 2, options.seed
        )
        vectors = np.concatenate([vectors, options.collaborative * together], axis=1)
    return vectors


def tokenize_items(data, options):
    """Data folder -> (SemanticIds, Quantised, report dict)."""
    vectors = item_vectors(data, options)
    size = options.codes or codes_for(len(data.items))
    quantised = residual_kmeans.residual_kmeans(vectors, options.levels, size, options.seed)
    size = len(quantised.codebooks[0])
    codes, last = residual_kmeans.resolve_collisions(quantised.codes, quantised.residual, size)
    level_sizes = (*[size] * (options.levels - 1), last + options.spare_codes)
    digest = codebook_digest(quantised.codebooks, level_sizes)
    use = residual_kmeans.level_use(quantised.codes, [size] * options.levels)
    report = {
        "items": len(data.items),
        "level_sizes": list(level_sizes),
        "collision_rate_before": residual_kmeans.collision_rate(quantised.codes),
        "collision_rate_after": residual_kmeans.collision_rate(codes),
        "extended_codes": last - size,
        "spare_codes": options.spare_codes,
        "codebook_use": [u for u, _ in use],
        "codebook_perplexity": [p for _, p in use],
        "reconstruction_error": float(
            (quantised.residual**2).sum() / max((vectors**2).sum(), 1e-12)
        ),
        "codebook_digest": digest,
        "data_digest": data.digest,
        "options": asdict(options),
    }
    return SemanticIds(data.items.ids, codes, level_sizes, digest), quantised, report


def codebook_digest(codebooks, level_sizes):
    """sha256 hex of the codebooks' bytes and the level sizes."""
    digest = hashlib.sha256(json.dumps(list(level_sizes)).encode())
    for book in codebooks:
        digest.update(np.ascontiguousarray(book, "<f4").tobytes())
    return digest.hexdigest()


def write_semantic_ids(folder, sids, quantised, report):
    """Writes the three files of the module's docstring, each beside its place and then renamed."""
    os.makedirs(folder, exist_ok=True)
    shared = {
        "level_sizes": np.array(sids.level_sizes, np.int32),
        "codebook_digest": np.array(sids.codebook_digest),
    }
    books = {f"codebook_{level}": book for level, book in enumerate(quantised.codebooks)}
    files.write_npz(os.path.join(folder, "codebooks.npz"), **books, **shared)
    files.write_npz(
        os.path.join(folder, "semantic_ids.npz"),
        item_id=sids.item_id,
        codes=sids.codes,
        base_codes=quantised.codes,
        **shared,
    )
    files.write_json(os.path.join(folder, "report.json"), report)


def configure(parser):
    d = TokenizeOptions()
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder")
    parser.add_argument(
        "--output", required=True, metavar="RUN", help="run folder; writes RUN/semantic_ids"
    )
    parser.add_argument(
        "--levels", type=int, default=d.levels, help=f"codes per item (default {d.levels})"
    )
    parser.add_argument(
        "--codes",
        type=int,
        default=d.codes,
        help="codes per level (default: by catalogue size, at most 256)",
    )
    parser.add_argument(
        "--spare_codes", type=int, default=d.spare_codes, help="last-level codes kept for new items"
    )
    parser.add_argument(
        "--encoder",
        metavar="DIR",
        help="Transformers or sentence-transformers folder (default: TF-IDF + SVD)",
    )
    parser.add_argument(
        "--dim", type=int, default=d.dim, help=f"dimensions of the TF-IDF vectors (default {d.dim})"
    )
    parser.add_argument(
        "--collaborative",
        type=float,
        default=d.collaborative,
        help="weight of co-occurrence beside text; 0: text alone",
    )
    parser.add_argument("--seed", type=int, default=d.seed)


def main(args):
    options = TokenizeOptions(**{name: getattr(args, name) for name in asdict(TokenizeOptions())})
    data = read_data(args.data)
    sids, quantised, report = tokenize_items(data, options)
    folder = os.path.join(args.output, "semantic_ids")
    write_semantic_ids(folder, sids, quantised, report)
    before, after = report["collision_rate_before"], report["collision_rate_after"]
    print(
        f"{folder}: {report['items']} items, levels {' x '.join(map(str, sids.level_sizes))}, "
        f"collisions {before:.2%} before and {after:.2%} after resolution"
    )
