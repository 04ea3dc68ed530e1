"""The core's Python door: recall index, behaviours, prompts, files. Imports no TensorFlow."""

try:
    from genrecall.kernels import _kernels
except ImportError as error:
    raise ImportError(
        "genrecall.kernels._kernels is not built: run `pip install .` in the checkout "
        f"(or `pip install -e .` to work on it). The cause: {error}"
    ) from error

__all__ = sorted(name for name in vars(_kernels) if not name.startswith("_"))

globals().update({name: getattr(_kernels, name) for name in __all__})
