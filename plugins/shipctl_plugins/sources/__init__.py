"""Where models can come from beside files of the project."""
