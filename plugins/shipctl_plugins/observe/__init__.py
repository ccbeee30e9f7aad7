"""Displays and logs of a run; all are hook implementations."""
