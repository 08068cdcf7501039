"""What all importers share: the options and the way from records to shards, in processes, killed and taken up again."""
