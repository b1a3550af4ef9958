"""Read models: derived from the journal, thrown away and rebuilt at will."""
