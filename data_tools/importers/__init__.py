"""One file per source of data: a reader, which gives records, and its `vlp-data` command.

Beside them stands what several readers use: JSON files, text files, questions gathered by image.
"""
