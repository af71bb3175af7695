"""Compiles kernels for the machine before tests need them, in as many processes as there are processors.

One after another, as tests come to need them, takes as long as all tests that run them.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from emulator import library
from emulator.runtime import EmulatorRuntime


def compile_ahead(folder, variants):
    """Compile these variants into `folder`; what fails to is left to the test that needs it."""
    processes = min(os.cpu_count() or 1, 8)
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(processes, context, initializer=library.load, initargs=(folder,)) as pool:
        for future in [pool.submit(compile_one, folder, variant) for variant in variants]:
            future.exception()


def compile_one(folder, variant):
    """Into the caches alone."""
    EmulatorRuntime(folder).kernel(variant)
