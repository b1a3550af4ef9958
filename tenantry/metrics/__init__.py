"""What Prometheus reads: the counters, what is looked up at a scrape, and the page."""
