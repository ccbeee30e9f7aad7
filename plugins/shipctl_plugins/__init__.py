"""The stages and hooks that ship with shipctl, one folder per kind of work."""
