"""Threads of BLAS beside those of XLA."""

import contextlib
from functools import cache

import scipy.linalg  # noqa: F401  (loads the BLAS whose LAPACK XLA calls on a CPU)
import threadpoolctl


@cache
def _libraries() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Within it BLAS and LAPACK have one thread.

    On a CPU XLA calls LAPACK for decompositions. OpenBLAS's threads then wait for more work without
    sleeping, and for tens of milliseconds take the cores from XLA's own: a step of SOAP by two
    threads takes 19 ms where one takes 12 (the published model, on two cores).
    """
    return _libraries().limit(limits=1, user_api="blas")
