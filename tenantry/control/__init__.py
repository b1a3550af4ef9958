"""The port through which commands reach the actors, and answers come back."""
