"""Runs one test file by pytest under Bazel: `import genrecall` finds the tree of its runfiles."""

import os
import sys

import pytest

if __name__ == "__main__":
    options = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*options, os.path.abspath(sys.argv[1])]))
