"""What is wrong with manifests, before a cluster sees them."""
