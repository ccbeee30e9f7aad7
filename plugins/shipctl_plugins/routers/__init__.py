"""What moves traffic in a cluster: gateways, meshes, and the Service alone."""
