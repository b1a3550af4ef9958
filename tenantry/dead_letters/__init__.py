"""Dead letters: their index, and how they are listed, replayed, discarded and looked after."""
