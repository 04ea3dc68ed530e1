"""Named settings of `genrecall sft`: the one place where measured defaults are written. Knows no
option that sft_options.py does not have (a test loads them all).

A preset names only what differs from the defaults in sft_options.py and loop_options.py.
"""

_FROM_SCRATCH = {"optimizer": "muon", "learning_rate": 3e-3, "ema": 0.998}

SFT = {
    # Decoders from scratch, by size.
    "tiny": {
        "decoder": {"hidden": 64, "layers": 2, "heads": 2, "feed_forward": 192},
        "loop": _FROM_SCRATCH,
    },
    "small": {
        "decoder": {"hidden": 192, "layers": 2, "heads": 6, "feed_forward": 384},
        "dropout": 0.1,
        "loop": {**_FROM_SCRATCH, "epochs": 13},
    },
    "base": {
        "decoder": {"hidden": 256, "layers": 4, "heads": 8, "feed_forward": 1024},
        "loop": _FROM_SCRATCH,
    },
    # What a decoder has learned before is neither overrun by large steps nor dropped out.
    "pretrained": {
        "dropout": 0.0,
        "loop": {"learning_rate": 2e-4, "epochs": 3},
        "stages": {"new_rows_share": 0.1},
    },
    "pretrained-lora": {
        "dropout": 0.0,
        "loop": {"learning_rate": 5e-4, "epochs": 3},
        "stages": {"new_rows_share": 0.1, "lora_rank": 16},
    },
}


def default_sft(given):
    """Name of the preset that `genrecall sft` builds on when none is named.

    Args:
      given: what the configuration file and the flags say.
    """
    return "pretrained" if given.get("checkpoint") else "small"
