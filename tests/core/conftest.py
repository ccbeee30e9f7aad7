"""The distribution of test stages, seen only by the tests of core."""

from __future__ import annotations

from support_engine import project, test_stages

__all__ = ["project", "test_stages"]
