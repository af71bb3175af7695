"""The PTX manual's definitions of instructions, stated once more in Python integers and fractions.

Nothing here knows the translator: a `Case` is an instruction as it is written, the types of its operands, and what the
manual says comes out. `test_instructions.py` runs every case through NVRTC, the translator and the machine.
"""
