"""The gRPC inference worker: bundle store, ONNX Runtime sessions, scheduling."""
