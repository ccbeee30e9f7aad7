"""Sources of Triton's python-based backends; they run in the server's own environment, never here."""
