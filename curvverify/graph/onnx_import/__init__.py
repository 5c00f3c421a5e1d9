"""ONNX models as torch modules: prepared, converted node by node, and run."""
