"""Runs one test file by pytest under Bazel, from its runfiles, where `import genrecall` finds the build's own tree."""

import os
import sys

import pytest

if __name__ == "__main__":
    options = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
    sys.exit(pytest.main([*options, os.path.abspath(sys.argv[1])]))
