"""`vlp-data regions`: region features into shards, from the files that people have, a detector, or a backbone."""
