"""A real Triton server on this machine: its environment, its processes, its API, and how to judge its answers."""
