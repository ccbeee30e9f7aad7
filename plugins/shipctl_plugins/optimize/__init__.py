"""Stages that make a model smaller or faster."""
