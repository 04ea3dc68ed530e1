"""Runs one test file by pytest under Bazel: `import genrecall` finds the tree of its runfiles.

A file whose tests are all slow has none to run here, which is no failure.
"""

import os
import sys

import pytest

if __name__ == "__main__":
    options = ["--import-mode=importlib", "-q", "-p", "no:cacheprovider"]
    code = pytest.main([*options, os.path.abspath(sys.argv[1])])
    sys.exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)
