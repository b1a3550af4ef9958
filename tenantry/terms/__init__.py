"""Terms: which of several daemons on one database may act, and since when."""
