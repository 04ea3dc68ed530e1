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


def scorers(data, lines, run_folder, mode, threads, hold_out="valid", options=None):
    """{"sasrec": scorer}, or {} when it is not wanted or not there.

    Args:
      data: data_folder.DataSet.
      lines: splits.Lines.
      run_folder: RUN; RUN/sasrec holds what was trained.
      mode: "auto": what was trained on these lines with these options, if it was; "train": trains
        it where it was not; "off".
      threads: of PyTorch.
      hold_out: what its training part leaves out, of splits.HOLD_OUT: the decoder's beside it.
      options: sasrec.SasrecOptions; None: its defaults.
    """
    options = options or sasrec.SasrecOptions()
    if mode == "off":
        return {}
    folder = os.path.join(run_folder, NAME)
    key = _key(data, lines, hold_out, options)
    model = load(folder, data, key, options)
    if model is None and mode == "train":
        torch.set_num_threads(threads)
        model = train(folder, data, lines, hold_out, options)
    return {} if model is None else {NAME: sasrec.Scorer(model)}


def train(folder, data, lines, hold_out, options):
    """Trains SASRec, writes it and its learning curve, returns it. Where validation targets are in
    the training part, once without them, for the number of epochs, and then with them.
    """
    console = Console(stderr=True)

    def report(entry):
        parts = [f"loss {entry['loss']:.3f}"]
        if "hr@10" in entry:
            parts.append(f"validation HR@10 {entry['hr@10']:.4f}, NDCG@10 {entry['ndcg@10']:.4f}")
        line = ", ".join([*parts, f"{entry['seconds']:.0f} s"])
        console.print(f"sasrec epoch {entry['epoch']}: {line}", highlight=False)

    def rows(hold_out):
        return [data.items.rows(own) for own in splits.training_sequences(lines, hold_out)]

    cases = protocol.cases_of(lines, data.items, "valid", lines.evaluated("valid"))
    model, history = sasrec.fit(rows("valid"), len(data.items), cases, options, report)
    curves = {"epochs": history}
    if hold_out != "valid":
        epochs = sasrec.best_epoch(history)
        console.print(f"sasrec again, {epochs} epochs on the validation targets too")
        model, again = sasrec.refit(rows(hold_out), len(data.items), epochs, options, report)
        curves["refit_epochs"] = again
    weights = {name: t.numpy() for name, t in model.state_dict().items()}
    key = np.array(_key(data, lines, hold_out, options))
    files.write_npz(_weights_path(folder), key=key, **weights)
    files.write_json(
        os.path.join(folder, "sasrec.json"),
        {
            "options": config.as_dict(options),
            "data_digest": data.digest,
            "parameters": sum(p.numel() for p in model.parameters()),
            "threads": torch.get_num_threads(),
            "hold_out": hold_out,
            **curves,
        },
    )
    return model


def load(folder, data, key, options):
    """The Sasrec in `folder`, or None when there is none of this key.

    Raises:
      ValueError: a damaged file.
    """
    if not os.path.exists(_weights_path(folder)):
        return None
    arrays = files.read_npz(_weights_path(folder))
    if str(arrays.pop("key", "")) != key:
        return None
    model = sasrec.Sasrec(len(data.items), options)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in arrays.items()})
    return model


def _weights_path(folder):
    return os.path.join(folder, "sasrec.npz")


def _key(data, lines, hold_out, options):
    """What a trained SASRec depends on: the data, how its lines were cleaned, what the training
    part leaves out, the options.
    """
    digest = hashlib.sha256(f"{data.digest} {hold_out}".encode())
    for column in (lines.begin, lines.item):
        digest.update(np.ascontiguousarray(column).tobytes())
    digest.update(json.dumps(config.as_dict(options), sort_keys=True).encode())
    return digest.hexdigest()
