"""One door for HTTP and gRPC: a real Envoy on loopback, configured by files, watched over by a small supervisor."""
