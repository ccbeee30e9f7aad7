"""Models as their frameworks have them: opened without a trace, and asked with named arrays."""
