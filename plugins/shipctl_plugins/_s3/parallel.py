"""Several pieces of one file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Executor, Future, wait
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")

_AHEAD = 8
"""Pieces that wait for a thread. What was read for them is still in the system's cache when they are sent."""


def side_by_side(threads: Executor, call: Callable[[A], T], pieces: Iterable[A]) -> list[T]:
    """Return what ``call`` returns for each piece, in order. ``pieces`` are taken as there is room for them.

    After the first failure no further piece is begun, and this returns when none is under way any more.
    """
    tasks: list[Future[T]] = []
    open_tasks: set[Future[T]] = set()
    try:
        for piece in pieces:
            task = threads.submit(call, piece)
            tasks.append(task)
            open_tasks.add(task)
            full = len(open_tasks) >= _AHEAD
            done, open_tasks = wait(open_tasks, None if full else 0, FIRST_COMPLETED)
            _raise_fault_of(done)
        done, _ = wait(open_tasks, return_when=FIRST_EXCEPTION)
        _raise_fault_of(done)
    finally:
        for task in tasks:
            task.cancel()
        wait(tasks)
    return [task.result() for task in tasks]


def _raise_fault_of(tasks: Iterable[Future[T]]) -> None:
    for task in tasks:
        task.result()
