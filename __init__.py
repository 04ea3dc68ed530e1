"""genrecall: generative recall as a TensorFlow Serving plugin. Holds no imports: see docs/structure.md."""
