"""What the stages around ONNX models share: graphs, sessions, data, parity, reports."""
