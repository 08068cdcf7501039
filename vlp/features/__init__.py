"""Features out of a trained model: what can be had, from what inputs, to which files, in parts that survive a kill.

`job` writes a folder of them, `stream` gives them to a program, `reading` reads the folder again.
"""
