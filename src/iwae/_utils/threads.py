"""Threads of BLAS beside those of XLA."""

import contextlib
import threading
from collections.abc import Iterator
from functools import cache

import threadpoolctl


class _Limit:
    """One thread of BLAS while at least one user wants it, since the limit is the process's."""

    def __init__(self) -> None:
        import scipy.linalg  # noqa: F401  (loads the BLAS whose LAPACK XLA calls on a CPU)

        self.libraries = threadpoolctl.ThreadpoolController()
        self.lock, self.users = threading.Lock(), 0

    def take(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limited = self.libraries.limit(limits=1, user_api="blas")
            self.users += 1

    def give_back(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limited.restore_original_limits()


@cache
def _limit() -> _Limit:
    return _Limit()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it BLAS and LAPACK have one thread, in the whole process.

    On a CPU XLA calls LAPACK for decompositions. OpenBLAS's threads then wait for more work without
    sleeping, and take the cores from XLA's own; by how much is among the cases of `benchmarks`,
    "recipe fast".
    """
    _limit().take()
    try:
        yield
    finally:
        _limit().give_back()
