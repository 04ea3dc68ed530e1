"""A trained semantic-ID tokenizer: vectors -> base codes, as a value and as a file. Knows no items
and no collisions.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from genrecall.training import files
from genrecall.training.semantic_ids import residual_kmeans


@dataclass(frozen=True)
class Layers:
    """A stack of linear layers with ReLU between: (weight float32 [out, in], bias float32 [out]);
    no layer is the identity.
    """

    layers: tuple = ()

    def __call__(self, x):
        """float32 [N, in] -> float32 [N, out]."""
        for place, (weight, bias) in enumerate(self.layers):
            x = x @ weight.T + bias
            if place < len(self.layers) - 1:
                x = np.maximum(x, 0)
        return np.ascontiguousarray(x, np.float32)


@dataclass(frozen=True)
class SidTokenizer:
    """Residual codebooks of a latent space, and the way there and back.

    codebooks: L arrays float32 [C_l, K]; encoder: vectors -> latents; decoder: latents -> vectors.
    Of residual k-means both are the identity.
    """

    codebooks: tuple
    encoder: Layers = Layers()
    decoder: Layers = Layers()

    @property
    def base_sizes(self):
        """Codes of every level, before any extension."""
        return tuple(len(book) for book in self.codebooks)

    def quantise(self, vectors):
        """Base codes of vectors float32 [N, D]: Quantised, its residual in the latent space."""
        return residual_kmeans.quantise(self.codebooks, self.encoder(vectors))

    def reconstruct(self, codes, levels=None):
        """What the first `levels` codes (None: all) of int32 [N, L] say: vectors float32 [N, D]."""
        used = self.codebooks[:levels]
        return self.decoder(sum(book[codes[:, level]] for level, book in enumerate(used)))

    def digest(self, level_sizes):
        """codebook_digest: sha256 hex of the codebooks' bytes and the level sizes."""
        digest = hashlib.sha256(json.dumps(list(level_sizes)).encode())
        for book in self.codebooks:
            digest.update(np.ascontiguousarray(book, "<f4").tobytes())
        return digest.hexdigest()

    def save(self, path, level_sizes):
        """Writes codebooks.npz."""
        arrays = {f"codebook_{level}": book for level, book in enumerate(self.codebooks)}
        for name in ("encoder", "decoder"):
            for place, (weight, bias) in enumerate(getattr(self, name).layers):
                arrays[f"{name}_{place}_weight"] = weight
                arrays[f"{name}_{place}_bias"] = bias
        files.write_npz(
            path,
            **arrays,
            level_sizes=np.array(level_sizes, np.int32),
            codebook_digest=np.array(self.digest(level_sizes)),
        )

    @staticmethod
    def load(path):
        """Reads codebooks.npz: (SidTokenizer, codebook_digest).

        Raises:
          FileNotFoundError: no such file.
          ValueError: it is damaged, or another kind of file.
        """
        arrays = files.read_npz(path)
        try:
            levels = len(arrays["level_sizes"])
            tokenizer = SidTokenizer(
                tuple(arrays[f"codebook_{level}"] for level in range(levels)),
                _layers(arrays, "encoder"),
                _layers(arrays, "decoder"),
            )
            digest, sizes = str(arrays["codebook_digest"]), arrays["level_sizes"].tolist()
        except KeyError as error:
            raise ValueError(f"{path}: no array {error}: expected a codebooks.npz") from error
        if digest != tokenizer.digest(sizes):
            raise ValueError(f"{path}: codebook_digest is not that of its codebooks")
        return tokenizer, digest


def _layers(arrays, name):
    layers = []
    while f"{name}_{len(layers)}_weight" in arrays:
        place = len(layers)
        layers.append((arrays[f"{name}_{place}_weight"], arrays[f"{name}_{place}_bias"]))
    return Layers(tuple(layers))
