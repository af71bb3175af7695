"""From the PTX that NVRTC emits to C++ that runs on the machine.

    text ──parse──► tree.Module ──translate──► one C++ file ──g++──► machine
                                     │
                families/: opcode pattern -> C++, one file for each kind of instruction

What is not known is refused with its line (`tree.UnknownInstruction`), never guessed. A new instruction is a row in a
family file (`forms.form`, `forms.pure`), if need be a function in `prelude/`, and its cases in `emulator/manual`.
"""
