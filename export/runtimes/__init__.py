"""What runs a file here: PyTorch, the runtimes of the library, and the reference evaluator of onnx."""
