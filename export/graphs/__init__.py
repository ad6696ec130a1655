"""From a checkpoint's model to ONNX graphs, one for each precision."""
