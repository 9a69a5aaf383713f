"""Reading ahead: the next batches are read in a thread while the present one is computed on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

DEPTH = 3  # batches that wait to be used

T = TypeVar("T")


def ahead(read: Callable[[int], T], numbers: Iterable[int]) -> Iterator[T]:
    """Yield ``read(number)`` for each number, in order, with the next ones read meanwhile.

    Args:
        read: called in one thread, in order; what it raises is raised here, in its turn.
        numbers: what to read.

    Example:
        >>> list(ahead(lambda number: number**2, [1, 5, 2]))
        [1, 25, 4]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="gradmimic-ahead") as thread:
        waiting: deque[Future[T]] = deque()
        try:
            for number in numbers:
                waiting.append(thread.submit(read, number))
                if len(waiting) > DEPTH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:  # nobody wants them any more
                future.cancel()
