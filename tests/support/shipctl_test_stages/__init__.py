"""Small stages and a hook with which the engine's tests drive it; found like any other plugin."""
