"""Turns a spec into a plan, runs what is not yet done, and records everything."""
