"""An exported model in a plain session, as a C++ server runs it. Knows no server."""

import tensorflow as tf

from genrecall.tf_ops import library


class LoadedModel:
    """Answers requests of named arrays; inputs left out take the defaults written into the model.

    Use as a context manager, or call close().
    """

    def __init__(self, folder):
        """Loads a version's folder and runs its init op.

        Raises:
          tf.errors.OpError: an asset is missing, damaged or of another SID space.
        """
        tf.load_op_library(library.path())  # once a process, however often it is called
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        logger = tf.get_logger()
        level = logger.level
        logger.setLevel("ERROR")  # it advises tf.saved_model.load, which runs functions eagerly
        try:
            with self._session.graph.as_default():
                loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(folder))
        except BaseException:
            self._session.close()
            raise
        finally:
            logger.setLevel(level)
        self.signatures = dict(loaded.signature_def)

    def __call__(self, inputs, signature="serving_default") -> dict:
        """Output name -> array.

        Raises:
          KeyError: no such signature or input.
          tf.errors.InvalidArgumentError, ...: what the graph says of the request.
        """
        signature = self.signatures[signature]
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        fetches = {name: info.name for name, info in signature.outputs.items()}
        return self._session.run(fetches, feeds)

    def close(self):
        self._session.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
