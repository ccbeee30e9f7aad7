"""TensorRT: what an engine build is asked, which back end can do it here, and what the engine then really does."""
