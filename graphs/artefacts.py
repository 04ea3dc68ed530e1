"""The files a recall graph is made of, read and checked against each other."""

import dataclasses
import json
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
    def load(cls, checkpoint, index, prompt=None) -> "Artefacts":
        """Reads and checks.

        Args:
          checkpoint: folder with sid_space.json. index: a recall index file.
          prompt: a compiled prompt; None: the folder's prompt.gguf.

        Raises:
          FileNotFoundError, DataLossError: as the files' own readers.
          ValueError: they are of different SID spaces, the prompt needs other facets, or it was
            compiled from another spec than the folder's prompt_spec.json.
        """
        checkpoint, index_path = pathlib.Path(checkpoint), pathlib.Path(index)
        prompt_path = pathlib.Path(prompt or checkpoint / "prompt.gguf")
        for path in (checkpoint / "sid_space.json", prompt_path, index_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
        space = prompt_spec.SidSpace.load(str(checkpoint / "sid_space.json"))
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
        spec = checkpoint / "prompt_spec.json"
        if spec.is_file() and _spec(spec.read_text("utf-8")) != _spec(loaded.prompt.spec_json):
            raise ValueError(
                f"{prompt_path}: compiled from another spec than {spec}: compile it again"
            )
        facets = loaded.prompt.facets
        if loaded.index.num_facets != len(facets):
            raise ValueError(
                f"{index_path}: {loaded.index.num_facets} facets: expected {len(facets)}, "
                f"as the prompt has ({', '.join(facets) or 'none'})"
            )
        return loaded


def compile_prompt(checkpoint, path):
    """Compiles a checkpoint folder's prompt_spec.json with its tokenizer.json into the file `path`.

    Raises:
      FileNotFoundError: one of the folder's files is missing. ValueError: as the compiler.
    """
    from tokenizers import Tokenizer

    checkpoint = pathlib.Path(checkpoint)
    for name in ("prompt_spec.json", "tokenizer.json", "sid_space.json"):
        if not (checkpoint / name).is_file():
            raise FileNotFoundError(f"{checkpoint / name}: no such file, and no prompt.gguf either")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    prompt_spec.compile_prompt(
        _spec((checkpoint / "prompt_spec.json").read_text("utf-8")),
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        prompt_spec.SidSpace.load(checkpoint / "sid_space.json"),
        path,
    )


def _spec(text):
    return prompt_spec.PromptSpec.from_json(json.loads(text))
