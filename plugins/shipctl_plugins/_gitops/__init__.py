"""Releases by way of a Git repository that Argo CD, Flux or somebody else applies to a cluster."""
