"""The page about a run: its data, its plots, its HTML."""
