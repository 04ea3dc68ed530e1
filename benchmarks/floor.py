"""The least time a request can take on a machine. Knows no system.

With P the decoder's non-embedding parameters, b the bytes of a weight and n_l the live rows of
pass l (n_0 = the prompt, then min(W, product of the first l level sizes)), pass l needs 2 P n_l
operations and reads P b bytes; its floor is the larger of operations / peak and bytes / bandwidth,
the request's floor their sum over the L passes. Of the prompt only the last row is read, so behind
the last layer's keys and values the others cost nothing.
"""

from workload import CODES, LEVELS, decoder_parameters, layer_parameters_behind_attention

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def pass_rows(width, prompt_tokens):
    """n_l of each of the L passes of one request."""
    return [prompt_tokens] + [min(width, CODES**level) for level in range(1, LEVELS)]


def floor_ms(machine, shape, isa, dtype, width, prompt_tokens, requests=1):
    """Milliseconds of `requests` like requests run together: their rows share each pass's read."""
    parameters = decoder_parameters(shape)
    unread = layer_parameters_behind_attention(shape) * (prompt_tokens - 1)
    bytes_s = parameters * WEIGHT_BYTES[dtype] / machine.bytes_per_s
    peak = machine.peak_ops(isa, dtype)
    products = [parameters * rows for rows in pass_rows(width, prompt_tokens)]
    products[0] -= unread
    return 1e3 * sum(max(2 * requests * n / peak, bytes_s) for n in products)
