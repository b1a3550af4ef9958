"""Does it add up: what was counted, held against what is there."""
