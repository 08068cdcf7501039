"""`vlp-data inspect`: what a data directory holds, on the terminal and as a page."""
