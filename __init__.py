"""genrecall: generative recall as a TensorFlow Serving plugin. See docs/structure.md."""
