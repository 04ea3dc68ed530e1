"""The files a recall graph is made of, read and checked against each other."""

import dataclasses
import pathlib

from genrecall import kernels
from genrecall.kernels import prompt_spec


@dataclasses.dataclass(frozen=True)
class Artefacts:
    """A checkpoint folder's compiled prompt and SID space, and a recall index of that space."""

    checkpoint: pathlib.Path
    prompt_path: pathlib.Path
    index_path: pathlib.Path
    sid_space: prompt_spec.SidSpace
    prompt: "kernels.Prompt"
    index: "kernels.RecallIndex"

    @classmethod
    def load(cls, checkpoint, index) -> "Artefacts":
        """Reads and checks.

        Args:
          checkpoint: folder with sid_space.json and prompt.gguf. index: a recall index file.

        Raises:
          FileNotFoundError, DataLossError: as the files' own readers.
          ValueError: they are of different SID spaces, or the prompt needs other facets.
        """
        checkpoint, index_path = pathlib.Path(checkpoint), pathlib.Path(index)
        for path in (checkpoint / "sid_space.json", checkpoint / "prompt.gguf", index_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
        space = prompt_spec.SidSpace.load(str(checkpoint / "sid_space.json"))
        prompt_path = checkpoint / "prompt.gguf"
        loaded = cls(
            checkpoint,
            prompt_path,
            index_path,
            space,
            kernels.Prompt.load(str(prompt_path)),
            kernels.RecallIndex.load(str(index_path)),
        )
        for path, of in ((prompt_path, loaded.prompt), (index_path, loaded.index)):
            if of.sid_space_digest != space.digest:
                raise ValueError(
                    f"{path}: sid_space_digest {of.sid_space_digest!r}: expected {space.digest!r}, "
                    f"that of {checkpoint / 'sid_space.json'}"
                )
        facets = loaded.prompt.facets
        if loaded.index.num_facets != len(facets):
            raise ValueError(
                f"{index_path}: {loaded.index.num_facets} facets: expected {len(facets)}, "
                f"as the prompt has ({', '.join(facets) or 'none'})"
            )
        return loaded
