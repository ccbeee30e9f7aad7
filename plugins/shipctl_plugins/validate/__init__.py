"""Stages that look at a model before work is put into it."""
