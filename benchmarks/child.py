"""What needs a fresh process: `python -m benchmarks.child MEASUREMENT ARGUMENT` prints one number.

The measurements are named by their functions below. Imports come late, since they are what is
measured.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()


def import_iwae(_: int) -> float:
    """Seconds to import iwae and all that training needs."""
    import iwae

    assert callable(iwae.train)
    return time.perf_counter() - BEGAN


def import_torch(_: int) -> float:
    """Seconds to import torch."""
    import torch  # noqa: F401

    return time.perf_counter() - BEGAN


def help_iwae(_: int) -> float:
    """Seconds that `iwae --help` takes."""
    began = time.perf_counter()
    command = [sys.executable, "-c", "from iwae.cli.app import main; main(['--help'])"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_step_iwae(layers: int) -> float:
    """Seconds from a built model to the end of its first step with K = 50: tracing, compiling."""
    from benchmarks.images import synthetic
    from benchmarks.iwae_steps import TrainingLoop, new_model

    images = synthetic(1000)
    model = new_model(layers, images)
    began = time.perf_counter()
    TrainingLoop(model, images, k=50, batch=20)(1)
    return time.perf_counter() - began


def first_step_torch(layers: int) -> float:
    """Seconds from a built net to the end of its first step with K = 50."""
    from benchmarks.images import synthetic
    from benchmarks.torch_iwae import THREADS, Autoencoder, TrainingLoop

    images = synthetic(1000)
    net = Autoencoder(layers, images.shape[1])
    began = time.perf_counter()
    TrainingLoop(net, images, k=50, batch=20, threads=THREADS, fused=False)(1)
    return time.perf_counter() - began


def memory_of_evaluation(k: int) -> float:
    """Peak MiB of this process after the evaluation of L_k on 5 images."""
    from benchmarks.images import synthetic
    from benchmarks.iwae_steps import log_likelihoods, new_model

    images = synthetic(5)
    log_likelihoods(new_model(1, images), images > 127, k)
    return peak_memory()


def peak_memory() -> float:
    """Largest resident set of this process so far, in MiB.

    Where there is a /proc, from there: on Linux, ru_maxrss starts at the size of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


MEASUREMENTS = (
    import_iwae,
    import_torch,
    help_iwae,
    first_step_iwae,
    first_step_torch,
    memory_of_evaluation,
)

if __name__ == "__main__":
    print({f.__name__: f for f in MEASUREMENTS}[sys.argv[1]](int(sys.argv[2])))
