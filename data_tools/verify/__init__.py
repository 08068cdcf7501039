"""`vlp-data verify`: finds beforehand all that a run would stumble over, and writes a clean copy."""
