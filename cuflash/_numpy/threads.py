"""Threads for blocks of work: a shared pool, BLAS held to one thread meanwhile, and both made anew after a fork.

The caller works too, and takes blocks off the same queue as its helpers: a busy or exhausted pool costs time, never a
deadlock. A block writes what no other writes, so results do not depend on who ran it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

Block = TypeVar("Block")


class _OneThreadBlas:
    """Holds BLAS to one thread while any caller is inside: the first in sets the limit, the last out restores it.

    A single block is held as well: BLAS on two threads may round differently, and a sequence decoded alone must have
    the bits that it has in a batch.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._libraries: list[Any] | None = None
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                if self._libraries is None:
                    self._libraries = _find_blas()
                self._before = [blas.get_num_threads() for blas in self._libraries]
                for blas in self._libraries:
                    blas.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._restore()

    def _restore(self) -> None:
        for blas, threads in zip(self._libraries or (), self._before):
            blas.set_num_threads(threads)

    def reset_after_fork(self) -> None:
        """The child has one thread, which is not inside: undo the limit that others held in the parent."""
        if self._inside:
            self._restore()
        self._lock = threading.Lock()
        self._inside = 0


def _find_blas() -> list[Any]:
    """The BLAS libraries of this process; finding them takes 0.2 ms and a wrapper stays valid, so once is enough."""
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


one_thread_blas = _OneThreadBlas()


class _Pool:
    """A thread pool of at least as many workers as were ever asked for, made when first needed."""

    def __init__(self) -> None:
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """The child has none of the parent's threads."""
        self._lock = threading.Lock()
        self._executor: Any = None
        self._workers = 0

    def submit(self, work: Callable[[], None], helpers: int) -> list[Any]:
        """Have `helpers` threads run `work`; fewer or none if the system or a closing interpreter refuses them."""
        from concurrent.futures import ThreadPoolExecutor

        futures: list[Any] = []
        with self._lock:
            if self._workers < helpers:
                if self._executor is not None:
                    self._executor.shutdown(wait=False)
                self._executor = ThreadPoolExecutor(helpers, thread_name_prefix="cuflash")
                self._workers = helpers
            with suppress(RuntimeError):
                futures.extend(self._executor.submit(work) for _ in range(helpers))
        return futures


_pool = _Pool()


def _after_fork() -> None:
    _pool.reset_after_fork()
    one_thread_blas.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run(blocks: Iterable[Block], make_worker: Callable[[], Callable[[Block], None]], threads: int) -> None:
    """Call a worker on every block; each thread makes its own worker, and with it its own scratch memory.

    Blocks are taken in order by whoever is free, so put the longest first. The first exception ends the work and is
    raised here once every thread has stopped. `threads` = 0 is for tiny work: this thread, and BLAS is not held.
    """
    if threads == 0:
        worker = make_worker()
        for block in blocks:
            worker(block)
        return
    queue = deque(blocks)
    with one_thread_blas:
        _run_queue(queue, make_worker, min(threads, len(queue)) - 1)


def _run_queue(queue: deque[Block], make_worker: Callable[[], Callable[[Block], None]], helpers: int) -> None:
    def work() -> None:
        worker = make_worker()
        try:
            while True:
                try:
                    block = queue.popleft()
                except IndexError:
                    return
                worker(block)
        except BaseException:
            queue.clear()
            raise

    futures = _pool.submit(work, helpers) if helpers > 0 else []
    try:
        work()
    finally:
        running = [future for future in futures if not future.cancel()]
        errors = [future.exception() for future in running]
    for error in errors:
        if error is not None:
            raise error
