"""A world in which a stranger can check what preference objectives do: see `docs/results.md`."""
