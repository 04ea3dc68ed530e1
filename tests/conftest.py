"""Lets test files import the helpers beside them (tiny_model, ...) in any import mode."""

import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel_checks import ISAS


@pytest.fixture(params=ISAS)
def isa(request):
    """Every instruction set that this machine has."""
    from genrecall.kernels import _kernels

    if ISAS.index(request.param) > ISAS.index(_kernels._numeric.detected_isa()):
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny_model.TinyModel, shared by all tests: not to be written to."""
    import tiny_model

    return tiny_model.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exported(tiny, tmp_path_factory):
    """The tiny model exported in float32 with the defaults of `tiny_model.OPTIONS`: DIR/1."""
    import tiny_model

    from genrecall.graphs.export import export
    from genrecall.graphs.options import RecallOptions

    output = tmp_path_factory.mktemp("exported") / "shop"
    return export(
        tiny.checkpoint,
        tiny.index,
        output,
        dtype="float32",
        options=RecallOptions(**tiny_model.OPTIONS),
        engine={"num_threads": 1},
        report=lambda line: None,
    )


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch on one thread for a module: models this small only wait for each other's threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
