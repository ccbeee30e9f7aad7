"""Artifacts by digest: bytes and results that never change once they are there."""
