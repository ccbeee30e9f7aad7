"""What is rendered: options to manifests."""
