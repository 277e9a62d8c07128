"""Networks as files for other programs, verified: PyTorch, StableHLO, ONNX, TensorFlow Lite."""
