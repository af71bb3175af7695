"""Machine code as text: instructions, the loops among them, and how often each is issued."""

import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple


class Loop(NamedTuple):
    """Instructions first ... last, of which the last jumps back to the first."""

    first: int
    last: int
    inner: list


class Code(NamedTuple):
    """A kernel: names of its instructions such as "FFMA", and the pairs (from, to) of its jumps back."""

    names: list
    back: list


def find_disassembler():
    """The path of nvdisasm, of the CUDA toolkit or of the wheel; None where it is not installed."""
    found = shutil.which("nvdisasm")
    if found is None:
        try:
            files = importlib.metadata.files("nvidia-cuda-nvdisasm") or ()
        except importlib.metadata.PackageNotFoundError:
            return None
        found = next((str(file.locate()) for file in files if file.stem == "nvdisasm"), None)
    return found


def disassemble(disassembler, cubin):
    """The code of a cubin with one kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        text = subprocess.run([disassembler, str(path)], capture_output=True, text=True, check=True).stdout
    return parse(text)


def parse(text):
    """The code in nvdisasm's output."""
    labels, names, jumps = {}, [], []
    for line in text.splitlines():
        label = re.match(r"(\.L_\w+):", line)
        if label:
            labels[label[1]] = len(names)
        instruction = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)(.*);", line)
        if instruction:
            target = re.search(r"\.L_\w+", instruction[2])
            if instruction[1] == "BRA" and target:
                jumps.append((len(names), target[0]))
            names.append(instruction[1])
    back = [(at, labels[target]) for at, target in jumps if labels[target] < at]
    return Code(names, back)


def loops(code):
    """The outermost loops in order of address, each with those inside."""
    outermost = []
    for last, first in sorted(code.back, key=lambda jump: (jump[1], -jump[0])):
        level = outermost
        while level and last <= level[-1].last:
            level = level[-1].inner
        level.append(Loop(first, last, []))
    return outermost


def count(code, loop, rounds):
    """How often each instruction of a loop is issued.

    `rounds` is how often the loop is gone through, and the same of each loop inside, in order of address. What
    branches skip outside of loops counts as issued.
    """
    times, inner = rounds
    assert len(inner) == len(loop.inner), f"{inner} are stated, found {loop.inner}"
    total, at = Counter(), loop.first
    for one, of_it in zip(loop.inner, inner, strict=True):
        total.update(code.names[at : one.first])
        total += count(code, one, of_it)
        at = one.last + 1
    total.update(code.names[at : loop.last + 1])
    return Counter({name: times * number for name, number in total.items()})
