"""The decoder engine: a prompt's token ids in, trie-constrained beams of semantic IDs out.

`Engine(weights_path)` loads a model.gguf written by `checkpoint.convert`; two engines of the same
weights and options in one process share one. `engine.decode(...)` answers a batch;
`engine.submit(...)` puts one request in flight. Needs no TensorFlow.
"""

__all__ = ["Engine", "Request"]


def __getattr__(name):
    """Loads the compiled engine on first use: converting a checkpoint does not need it."""
    if name in __all__:
        from genrecall.trtllm_bridge import _engine

        return getattr(_engine, name)
    raise AttributeError(f"module 'genrecall.trtllm_bridge' has no attribute {name!r}")
