"""Stages that turn a model from one format into another."""
