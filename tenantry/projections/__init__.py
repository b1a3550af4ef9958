"""Read models: derived from the journal, and rebuilt from it at will."""
