"""Dialogues: readers of the data sets' native formats, one `Dialogue` type, our own JSON lines, a
generator.
"""
