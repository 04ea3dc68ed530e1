"""The SID space as a file: level sizes, the stored table (level, code) -> token id, their name."""

import hashlib
import json
import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrecall.kernels.json_fields import Fields, check_integer, check_version, read_json

FORMAT_VERSION = 1
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class SidSpace:
    """The shape of the semantic IDs and the token of each (level, code).

    Attributes:
      level_sizes: L numbers of codes, L in 1..8, each in 1..65535.
      token_ids: [L][C_l] vocabulary ids, all distinct.
      digest: sid_space_digest, the name that weights, index and prompt share. "" computes it.
      codebook_digest: name of the codebooks the codes come from, a part of the digest.

    Raises:
      ValueError: names the level and code at fault.
    """

    level_sizes: tuple[int, ...]
    token_ids: tuple[tuple[int, ...], ...]
    digest: str = ""
    codebook_digest: str = ""

    def __post_init__(self):
        sizes = tuple(operator.index(c) for c in self.level_sizes)
        ids = tuple(tuple(operator.index(t) for t in level) for level in self.token_ids)
        object.__setattr__(self, "level_sizes", sizes)
        object.__setattr__(self, "token_ids", ids)
        if not 1 <= len(sizes) <= 8:
            raise ValueError(f"level_sizes has {len(sizes)} levels: expected 1..8")
        if len(ids) != len(sizes):
            raise ValueError(f"token_ids has {len(ids)} levels: expected {len(sizes)}")
        seen = {}
        for level, (size, tokens) in enumerate(zip(sizes, ids, strict=True)):
            if not 1 <= size <= 65535:
                raise ValueError(f"level_sizes[{level}] = {size}: expected 1..65535")
            if len(tokens) != size:
                raise ValueError(f"token_ids[{level}] has {len(tokens)} ids: expected {size}")
            for code, token in enumerate(tokens):
                if not 0 <= token <= _INT32_MAX:
                    raise ValueError(
                        f"token_ids[{level}][{code}] = {token}: expected 0..{_INT32_MAX}"
                    )
                if token in seen:
                    other = seen[token]
                    raise ValueError(
                        f"token_ids[{level}][{code}] = {token}: expected an id of its own, "
                        f"but token_ids[{other[0]}][{other[1]}] is the same"
                    )
                seen[token] = level, code
        if not self.digest:
            object.__setattr__(self, "digest", self.compute_digest())

    def compute_digest(self) -> str:
        """sha256 hex of the canonical JSON of level_sizes, token_ids and codebook_digest."""
        content = {
            "level_sizes": self.level_sizes,
            "token_ids": self.token_ids,
            "codebook_digest": self.codebook_digest,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def build(
        cls, level_sizes: Sequence[int], token_ids: Sequence[Sequence[int]], codebook_digest: str
    ) -> "SidSpace":
        """A SID space named by its contents: level_sizes [L], token_ids [L][C_l]."""
        return cls(tuple(level_sizes), tuple(token_ids), "", codebook_digest)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "SidSpace":
        """Reads sid_space.json.

        Raises:
          ValueError: unknown keys, another version, or a digest that does not fit.
        """
        top = Fields(read_json(path), str(path))
        check_version(top, FORMAT_VERSION)
        space = cls(
            level_sizes=tuple(top.ints("level_sizes")),
            token_ids=tuple(
                tuple(
                    check_integer(t, f"{path}: token_ids[{level}][{code}]")
                    for code, t in enumerate(ids)
                )
                for level, ids in enumerate(top.lists("token_ids"))
            ),
            digest=top.text("digest"),
            codebook_digest=top.text("codebook_digest"),
        )
        top.finish()
        if space.digest != space.compute_digest():
            raise ValueError(
                f"{path}: digest = '{space.digest}': "
                f"expected '{space.compute_digest()}' for its contents"
            )
        return space

    def save(self, path: str | os.PathLike) -> None:
        """Writes sid_space.json."""
        content = {
            "format_version": FORMAT_VERSION,
            "level_sizes": self.level_sizes,
            "token_ids": self.token_ids,
            "codebook_digest": self.codebook_digest,
            "digest": self.digest,
        }
        Path(path).write_text(json.dumps(content) + "\n", encoding="utf-8")
