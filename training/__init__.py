"""From a data folder to a decoder, its semantic IDs and its index. Imports no TensorFlow."""

import os

# OpenMP reads this once, when PyTorch, Faiss or scikit-learn load it. Its threads spin between the
# many short kernels of a small model; as soon as anything else wants a core, they spin for each
# other: measured on two busy cores, 465 tokens/s spinning, 11,075 asleep, for no more CPU time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
