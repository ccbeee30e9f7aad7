"""Jinja2 templates rendered by stages and commands, one folder per owner."""
