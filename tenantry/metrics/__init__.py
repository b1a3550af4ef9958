"""What Prometheus reads: the counters, the values looked up at a scrape, and the page."""
