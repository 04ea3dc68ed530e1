"""A tiny shop and a run of it, by the commands: what tests of a run's verbs start from."""

from genrecall import cli


def tokenized(tmp_path_factory, users, items, levels=3, codes=4):
    """(data folder, run folder with semantic IDs)."""
    data, folder = (str(tmp_path_factory.mktemp(name)) for name in ("shop", "run"))
    assert cli.main(["synth", "--output", data, "--users", str(users), "--items", str(items)]) == 0
    tokenize = f"tokenize --levels {levels} --codes {codes} --dim 8".split()
    assert cli.main([*tokenize, "--data", data, "--output", folder]) == 0
    return data, folder


def fine_tuned(tmp_path_factory, users=50, items=40, epochs=2, validations=1, valid_users=20):
    """(data folder, run folder after a few steps of sft)."""
    data, folder = tokenized(tmp_path_factory, users, items)
    sft = f"sft --preset tiny --epochs {epochs} --validations {validations}".split()
    sft += f"--valid_users {valid_users} --threads 1".split()
    assert cli.main([*sft, "--data", data, "--run", folder]) == 0
    return data, folder
