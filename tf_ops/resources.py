"""Files that a SavedModel carries and its init op loads again: index, prompt, engine.

That holds in Python and in a C++ server.

Each resource owns its file as an asset, so an exported folder may be moved, and holds no absolute
path.
"""

import uuid

import tensorflow as tf

from genrecall.tf_ops.library import ops


class _FileResource(tf.saved_model.experimental.TrackableResource):
    """A resource made from one file: a handle op names it, an initialize op loads it."""

    def __init__(self, path, kind):
        """Loads the file at once, so that a bad one fails where it is named."""
        super().__init__(device="CPU")
        self._name = f"genrecall_{kind}_{uuid.uuid4().hex[:12]}"
        with tf.init_scope():
            # Tracked, so that a SavedModel copies the file and the init op takes the copy's path.
            self._asset = self._track_trackable(tf.saved_model.Asset(str(path)), "asset")
            self._initialize()

    def _create_resource(self):
        return self._make_handle(shared_name=self._name)

    def _initialize(self):
        self._load(self.resource_handle, self._asset.asset_path)

    def _destroy_resource(self):
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)


class RecallIndexResource(_FileResource):
    """The recall index that serves; replaced in place from the directory GENRECALL_INDEX_DIR.

    With that variable set, the newest valid `*.gguf` of the directory, by modification time, then
    name, serves instead of the asset; the directory is looked at every `GENRECALL_INDEX_POLL_MS`
    (1000) milliseconds. A file that is damaged, of another version, SID space, level sizes or
    number of facets is refused: the old index goes on serving, the log says why, and the counter
    `/genrecall/index/rejected` goes up.

    Args:
      path: a file written by `kernels.RecallIndex.save`.
      sid_space_digest: SID space of the model, "" for any.

    Raises:
      tf.errors.NotFoundError: no such file.
      tf.errors.DataLossError: truncated or damaged.
      tf.errors.FailedPreconditionError: another format version or SID space.
      tf.errors.InvalidArgumentError: `GENRECALL_INDEX_POLL_MS` is not a positive integer.
    """

    def __init__(self, path, sid_space_digest=""):
        self._sid_space_digest = sid_space_digest
        super().__init__(path, "index")

    def _make_handle(self, shared_name):
        return ops.genrecall_recall_index_handle(shared_name=shared_name)

    def _load(self, handle, path):
        ops.genrecall_initialize_recall_index(handle, path, sid_space_digest=self._sid_space_digest)


class PromptResource(_FileResource):
    """A compiled prompt.

    Args:
      path: a file written by `kernels.prompt_spec.compile_prompt`.
      sid_space_digest: SID space of the model, "" for any.

    Raises: as RecallIndexResource, but for the environment.
    """

    def __init__(self, path, sid_space_digest=""):
        self._sid_space_digest = sid_space_digest
        super().__init__(path, "prompt")

    def _make_handle(self, shared_name):
        return ops.genrecall_prompt_handle(shared_name=shared_name)

    def _load(self, handle, path):
        ops.genrecall_initialize_prompt(handle, path, sid_space_digest=self._sid_space_digest)


class EngineResource(_FileResource):
    """A decoder engine. Graphs of the same weights and options in one process share one.

    Args:
      path: weights written by `trtllm_bridge.checkpoint.convert`.
      engine: implementation; "cpu" is the one that is built in.
      num_threads: 0: `GENRECALL_CPU_THREADS`, else the CPUs that the process may
        use, at most its container's quota.
      max_queue: requests that may wait; more are refused with RESOURCE_EXHAUSTED.
      max_step_rows: rows of one scheduler step.
      prefill_chunk: prompt rows of one request per step at most, while others are live.
      max_prompt_tokens: longest prompt accepted.
      kv_bytes: bytes of keys and values, kept prompt prefixes included, of all engines of this
        number in the process; 0: `GENRECALL_KV_BYTES`, else 1 GiB.

    Raises:
      tf.errors.OpError: no such engine, or weights that are missing, damaged or of an unsupported
      model, by name.
    """

    def __init__(
        self,
        path,
        *,
        engine="cpu",
        num_threads=0,
        max_queue=256,
        max_step_rows=512,
        prefill_chunk=160,
        max_prompt_tokens=4096,
        kv_bytes=0,
    ):
        self._options = dict(
            engine=engine,
            num_threads=num_threads,
            max_queue=max_queue,
            max_step_rows=max_step_rows,
            prefill_chunk=prefill_chunk,
            max_prompt_tokens=max_prompt_tokens,
            kv_bytes=kv_bytes,
        )
        super().__init__(path, "engine")

    def _make_handle(self, shared_name):
        return ops.genrecall_engine_handle(shared_name=shared_name)

    def _load(self, handle, path):
        ops.genrecall_initialize_engine(handle, path, **self._options)
