"""The process' metrics as text."""

from genrecall.tf_ops.library import ops


def metrics_text():
    """All `tensorflow::monitoring` metrics of the process in Prometheus' text format.

    Names and labels are written as TF Serving writes them.

    Returns:
      string []: lines such as `:genrecall:index:replaced{} 2`.
    """
    return ops.genrecall_metrics_text()
