"""What a plugin author sees: base classes, artifacts, contexts, verdicts, events and hooks."""
