"""Stages that lay out Triton model repositories."""
