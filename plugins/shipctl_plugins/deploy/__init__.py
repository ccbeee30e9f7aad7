"""Release stages: they put what was made on a target."""
