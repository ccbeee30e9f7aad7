"""Several pieces of one file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, wait
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")


def side_by_side(threads: Executor, call: Callable[[A], T], pieces: Iterable[A]) -> list[T]:
    """Return what ``call`` returns for each piece, in order.

    After the first failure no further piece is begun, and this returns when none is under way any more.
    """
    tasks = [threads.submit(call, piece) for piece in pieces]
    try:
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        wait(tasks)
    return [task.result() for task in tasks]
