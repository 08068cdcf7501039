"""Search by meaning: an index of extracted vectors, words or a picture in, images or texts out."""
