"""A graph of a bundle, read and measured without running it and without the `onnx` package."""
