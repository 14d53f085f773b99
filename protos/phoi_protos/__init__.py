"""The gRPC contract between edge node and inference worker, and its generated code."""
