"""Kubernetes: reaching a cluster, what is put on it, and what is kept there."""
