"""Threads for blocks of work: a shared pool, BLAS held to one thread meanwhile, and both made anew after a fork.

The caller works too, and takes blocks off the same queue as its helpers: a busy or exhausted pool costs time, never a
deadlock. A block writes what no other writes, so results do not depend on who ran it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

Block = TypeVar("Block")


class _OneThreadBlas:
    """Holds BLAS to one thread while any caller is inside.

    Some libraries count their threads for the whole process (OpenBLAS as NumPy ships it): the first caller in sets the
    limit, the last out restores what was set. Others count for each thread of ours (MKL, OpenBLAS over OpenMP): every
    caller sets its own, and the pool's threads are limited for good.

    A single block is held as well: BLAS on two threads may round differently, and a sequence decoded alone must have
    the bits that it has in a batch.
    """

    def __init__(self, find_libraries: Callable[[], list[Any]]) -> None:
        self.lock = threading.Lock()
        self._find_libraries = find_libraries
        self._callers: set[int] = set()  # threads inside
        self._shared: list[Any] | None = None
        self._before: list[int] | None = None
        self._own: list[Any] = []
        self._before_own = threading.local()

    def __enter__(self) -> None:
        """A thread counts once: one that an interrupt kept from leaving does so at the end of its next call."""
        with self.lock:
            self._find()
            self._callers.add(threading.get_ident())
            if self._before is None:
                self._before = _get_threads(self._shared)
            if len(self._callers) == 1:
                _set_threads(self._shared, 1)
        if self._own:
            if not hasattr(self._before_own, "threads"):
                self._before_own.threads = _get_threads(self._own)
            _set_threads(self._own, 1)

    def __exit__(self, *exception: object) -> None:
        if hasattr(self._before_own, "threads"):
            _set_threads(self._own, *self._before_own.threads)
            del self._before_own.threads
        with self.lock:
            self._callers.discard(threading.get_ident())
            self._restore()

    def _restore(self) -> None:
        if not self._callers and self._before is not None:
            _set_threads(self._shared, *self._before)
            self._before = None

    def limit_pool_thread(self) -> None:
        """Called by a thread that works for this module alone."""
        with self.lock:
            self._find()
        _set_threads(self._own, 1)

    def _find(self) -> None:
        if self._shared is None:
            libraries = self._find_libraries()
            self._own = [blas for blas in libraries if _counts_for_each_thread(blas)]
            self._shared = [blas for blas in libraries if not _counts_for_each_thread(blas)]

    def reset_after_fork(self) -> None:
        """The child has one thread, which is not inside: undo the limit that others held in the parent."""
        self._callers.clear()
        self._restore()


def _find_blas() -> list[Any]:
    """The BLAS libraries of this process; finding them takes 0.2 ms and a wrapper stays valid, so once is enough."""
    from threadpoolctl import ThreadpoolController

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _counts_for_each_thread(blas: Any) -> bool:
    return blas.internal_api == "mkl" or getattr(blas, "threading_layer", None) == "openmp"


def _get_threads(libraries: list[Any] | None) -> list[int]:
    return [blas.get_num_threads() for blas in libraries or ()]


def _set_threads(libraries: list[Any] | None, *threads: int) -> None:
    """Set one number for all libraries, or one for each.

    Where one count serves the whole process, threadpoolctl 3.8 listens to the first thread that ever set it and
    ignores the others until that one lets go; whoever comes here holds the lock, so the right is taken and given back.
    """
    for number, blas in enumerate(libraries or ()):
        let_go = getattr(blas, "clear_controlling_thread", None)
        if let_go:
            let_go(force=True)
        blas.set_num_threads(threads[number] if len(threads) > 1 else threads[0])
        if let_go:
            let_go(force=True)


one_thread_blas = _OneThreadBlas(_find_blas)


class _Job:
    """Work for one helper: begun by a thread of the pool, or taken back by the caller before that."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._claim = threading.Lock()
        self._outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def __call__(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        error: BaseException | None = None
        try:
            self._work()
        except BaseException as raised:
            error = raised
        self._outcome.put(error)

    def finish(self) -> BaseException | None:
        """Take the job back if nobody has begun it, else wait for its end; returns what it raised."""
        return None if self._claim.acquire(blocking=False) else self._outcome.get()


class _Pool:
    """Threads that take jobs off one queue; as many as were ever asked for, started when first needed.

    concurrent.futures would do, but for Ctrl-C: an interrupt inside one of its locks, which are written in Python,
    leaves that lock held and the next call waiting for ever. `SimpleQueue` and `Lock` are single steps to an interrupt.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """The child has none of the parent's threads."""
        self._threads = 0
        self._jobs: SimpleQueue[_Job] = SimpleQueue()

    def submit(self, job: _Job, helpers: int) -> None:
        """Put a job where one of at least `helpers` threads takes it, if the system has granted any."""
        with self.lock:
            while self._threads < helpers:
                thread = threading.Thread(target=_serve, args=(self._jobs,), name="cuflash", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads, or the interpreter is closing
                    break
                self._threads += 1
        self._jobs.put(job)


def _serve(jobs: SimpleQueue[_Job]) -> None:
    one_thread_blas.limit_pool_thread()
    while True:
        jobs.get()()


_pool = _Pool()
_locks = (_pool.lock, one_thread_blas.lock)


def _before_fork() -> None:
    """Fork only where no thread is inside a lock of ours, nor in what those protect: the child could never enter."""
    for lock in _locks:
        lock.acquire()


def _after_fork_in_parent() -> None:
    for lock in reversed(_locks):
        lock.release()


def _after_fork_in_child() -> None:
    _pool.reset_after_fork()
    one_thread_blas.reset_after_fork()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


# Probabilities underflow by design, and the lse of a query that saw no key is log(0). Other floating-point errors are
# the caller's to choose, whichever thread meets them.
_EXPECTED: dict[str, Any] = {"under": "ignore", "divide": "ignore"}


def run(blocks: Iterable[Block], make_worker: Callable[[], Callable[[Block], None]], threads: int) -> None:
    """Call a worker on every block; each thread makes its own worker, and with it its own scratch memory.

    Blocks are taken in order by whoever is free, so put the longest first. The first exception ends the work and is
    raised here once every thread has stopped. `threads` = 0 is for tiny work: this thread, and BLAS is not held.
    """
    queue = deque(blocks)
    if not queue:
        return
    if threads == 0:
        with np.errstate(**_EXPECTED):
            worker = make_worker()
            for block in queue:
                worker(block)
        return
    settings: dict[str, Any] = {**np.geterr(), **_EXPECTED}

    def work() -> None:
        with np.errstate(**settings):
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

    with one_thread_blas:
        _share(work, queue, min(threads, len(queue)) - 1)


def _share(work: Callable[[], None], queue: deque[Any], helpers: int) -> None:
    """Work here and in helpers, and leave no helper at work; raise what the first of them raised."""
    jobs: list[_Job] = []
    try:
        for _ in range(helpers):
            jobs.append(_Job(work))
            _pool.submit(jobs[-1], helpers)
        work()
    finally:
        queue.clear()
        errors = [job.finish() for job in jobs]
    for error in errors:
        if error is not None:
            raise error
