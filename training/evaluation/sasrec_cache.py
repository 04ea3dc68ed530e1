"""SASRec for a run's table: trained once for a data folder and options, then read back. Knows no
metric.
"""

import hashlib
import json
import os

import numpy as np
import torch
from rich.console import Console

from genrecall.training import config, files
from genrecall.training.dataset import splits
from genrecall.training.evaluation import protocol, sasrec

NAME = "sasrec"


def scorers(data, lines, run_folder, mode, threads, options=None):
    """{"sasrec": scorer}, or {} when it is not wanted or not there.

    Args:
      data: data_folder.DataSet.
      lines: splits.Lines.
      run_folder: RUN; RUN/sasrec holds what was trained.
      mode: "auto": what was trained on these lines with these options, if it was; "train": trains
        it where it was not; "off".
      threads: of PyTorch.
      options: sasrec.SasrecOptions; None: its defaults.
    """
    options = options or sasrec.SasrecOptions()
    if mode == "off":
        return {}
    folder = os.path.join(run_folder, NAME)
    model = load(folder, data, lines, options)
    if model is None and mode == "train":
        torch.set_num_threads(threads)
        model = train(folder, data, lines, options)
    return {} if model is None else {NAME: sasrec.Scorer(model)}


def train(folder, data, lines, options):
    """Trains SASRec on the training part, writes it and its learning curve, returns it."""
    console = Console(stderr=True)
    sequences = [data.items.rows(own) for own in splits.training_sequences(lines)]
    cases = protocol.cases_of(lines, data.items, "valid", lines.evaluated("valid"))

    def report(entry):
        console.print(
            f"sasrec epoch {entry['epoch']}: loss {entry['loss']:.3f}, validation HR@10 "
            f"{entry['hr@10']:.4f}, NDCG@10 {entry['ndcg@10']:.4f}, {entry['seconds']:.0f} s",
            highlight=False,
        )

    model, history = sasrec.fit(sequences, len(data.items), cases, options, report)
    weights = {name: t.numpy() for name, t in model.state_dict().items()}
    files.write_npz(_weights_path(folder), key=np.array(_key(data, lines, options)), **weights)
    files.write_json(
        os.path.join(folder, "sasrec.json"),
        {
            "options": config.as_dict(options),
            "data_digest": data.digest,
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
            "epochs": history,
        },
    )
    return model


def load(folder, data, lines, options):
    """The Sasrec in `folder`, or None when there is none for this data and these options.

    Raises:
      ValueError: a damaged file.
    """
    if not os.path.exists(_weights_path(folder)):
        return None
    arrays = files.read_npz(_weights_path(folder))
    if str(arrays.pop("key", "")) != _key(data, lines, options):
        return None
    model = sasrec.Sasrec(len(data.items), options)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    return model


def _weights_path(folder):
    return os.path.join(folder, "sasrec.npz")


def _key(data, lines, options):
    """What a trained SASRec depends on: the data, how its lines were cleaned, the options."""
    digest = hashlib.sha256(data.digest.encode())
    for column in (lines.begin, lines.item):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(json.dumps(config.as_dict(options), sort_keys=True).encode())
    return digest.hexdigest()
