"""Stages that measure how good and how fast a model is, and choose."""
