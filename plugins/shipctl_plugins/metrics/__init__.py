"""Where numbers about a release come from, a module per source."""
