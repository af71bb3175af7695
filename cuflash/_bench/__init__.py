"""Measuring: what ``python -m cuflash bench`` and the scripts of ``bench/`` share.

`timing` lets peers take turns, `standard` is what they are compared with in NumPy, `report` prints and keeps tables
with the machine they were read on, `seeds` is the command's two tables and `chart` their picture.
"""
