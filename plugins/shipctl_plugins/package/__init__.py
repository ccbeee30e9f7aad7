"""A model becomes a package with its evidence, scanned, signed and taken apart again."""
