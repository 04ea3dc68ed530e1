"""What is done to a request before anything reads it."""

from genrecall.tf_ops.library import ops


def broadcast_request(inputs, dims):
    """Repeats rows and columns of size 1 to the sizes of the request; the rest is not copied.

    Args:
      inputs: dict name -> tensor. dims: dict name -> one letter per dimension, "B" or "BT", in the
        order that counts: the first input with a letter gives its size.

    Returns:
      dict name -> tensor.

    Raises:
      InvalidArgumentError: an input of another rank, or of a size that is neither that nor 1:
        "behavior_time: got shape [4,39], expected [B = 4, T = 40]; a size of 1 stands for ...".
    """
    names = list(dims)
    outputs = ops.genrecall_broadcast_request(
        [inputs[name] for name in names], names=names, dims=[dims[name] for name in names]
    )
    return dict(zip(names, outputs, strict=True))
