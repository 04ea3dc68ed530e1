"""Lets test files import the helpers beside them (tiny_model, ...) in any import mode."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
