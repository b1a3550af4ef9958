"""Dead letters, worked off: replayed, discarded, and looked after."""
