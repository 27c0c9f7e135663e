"""Training in several processes, each computing a part of every batch (optional: needs mpi4py).

    mpirun -n 4 python -m weakunet.train --batch 4

The loss is the mean over the N scans of a batch, so its gradient is a weighted sum over the ranks,
as MPI calls the processes. Rank r computes dw_r, the gradient of the mean over its own N_r scans:

    dw = sum_r (N_r / N) dw_r

After each backward pass every rank sends its term to all others and adds up all terms in the order
of the ranks. All then take the same optimizer step, so their weights stay equal, bit for bit,
without ever being sent. Rank 0 alone reads, prints and writes.
"""

import contextlib
import os
import sys
import time
import traceback

import numpy as np

from weakunet.gpu import backend
from weakunet.util.cli import InputError, one_line
from weakunet.util.processes import cores
from weakunet.util.threads import set_threads

LAUNCHERS = (  # their variables for the number of processes, and for which one this is
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # Open MPI
    ("PMI_SIZE", "PMI_RANK"),  # MPICH, Intel MPI
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun
)


class Ranks:
    """The processes of a run. Without MPI there is one, rank 0: it exchanges nothing."""

    def __init__(self, comm=None):
        self.comm, self.nccl = comm, None  # nccl: between GPUs
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)

    def settle(self, batch, device):
        """Check the batch's size; take this process's GPU, or its fair number of cores."""
        if not self.comm:
            return
        if batch < self.size:
            raise InputError(f"--batch {batch}: raise it to at least the {self.size} processes")
        from mpi4py import MPI

        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)  # the ranks on this computer
        if device == "cuda":
            self.nccl = backend.join_gpus(self.rank, self.size, node.rank)
        else:  # ranks that may use the same cores divide them
            allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
            set_threads(max(1, cores() // node.allgather(allowed).count(allowed)))

    def first(self, function, *args):
        """Call function(*args) in rank 0; every rank returns its result."""
        result = function(*args) if self.rank == 0 else None
        return self.comm.bcast(result) if self.comm else result

    def take_up(self, run):
        """Give the state of rank 0's run to every rank."""
        if self.comm:
            state = run.epoch, run.batch, run.history, run.predicted
            run.epoch, run.batch, run.history, run.predicted = self.comm.bcast(state)
            run.model.load(self.comm.bcast(run.model.params))
            for average in run.optimizer.state.values():
                average[...] = self.comm.bcast(average)

    def any(self, flag):
        """True in every rank if `flag` is true in one."""
        return any(self.comm.allgather(flag)) if self.comm else flag

    def gradient(self, compute, batch, model):
        """Predicted counts and gradients (name -> array) of a batch, each rank doing its part.

        batch: a slice of scans. compute(part): the predicted counts of a part; sets model.grads.
        """
        if not self.comm:
            return compute(batch), model.grads
        xp = backend.array_module(model.params["linear.b"])
        counts, weight = self._part(compute, batch, xp)
        terms = [counts, *(grad.ravel() * weight for grad in model.grads.values())]
        total = self._sum(xp.concatenate(terms))  # one message: counts (N,), then all gradients
        counts, *flat = xp.split(total, np.cumsum([term.size for term in terms[:-1]]).tolist())
        return counts, {name: flat.pop(0).reshape(g.shape) for name, g in model.grads.items()}

    def counts(self, predict, n):
        """Predicted counts (n,) of n scans; each rank calls predict(part) for a slice of them."""
        return self._sum(self._part(predict, slice(0, n))[0]) if self.comm else predict(slice(n))

    def _part(self, compute, batch, xp=np):
        """Counts (N,) of a batch, 0 but for those of this rank's N_r scans; N_r / N."""
        n = batch.stop - batch.start
        start, stop = n * self.rank // self.size, n * (self.rank + 1) // self.size
        counts = xp.zeros(n, np.float32)
        if start < stop:  # an epoch's last batch may hold fewer scans than there are ranks
            counts[start:stop] = compute(slice(batch.start + start, batch.start + stop))
        return counts, np.float32((stop - start) / n)

    def _sum(self, term):
        """The sum of the ranks' arrays (n,), in the order of the ranks."""
        terms = backend.array_module(term).empty((self.size, term.size), term.dtype)
        if backend.is_cuda(term):
            self.nccl.all_gather(term, terms, term.size)
        else:
            self.comm.Allgather(term, terms)
        return sum(terms[1:], start=terms[0])  # MPI's own sum may take them in any order


@contextlib.contextmanager
def join():
    """Yield the Ranks of this run. An error in one ends them all, with a line that names it."""
    started = [(os.environ[n], os.environ[r]) for n, r in LAUNCHERS if {n, r} <= os.environ.keys()]
    size, rank = map(int, started[0]) if started else (1, 0)
    if size == 1:
        yield Ranks()
        return
    if rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
    comm = None
    try:
        comm = _connect(size)
        yield Ranks(comm)
    except Exception as error:  # not SystemExit (--help, Ctrl-C): all ranks leave together
        time.sleep(rank > 0)  # where all fail alike, rank 0 says it and ends the others
        if comm is None:
            raise
        if not isinstance(error, (InputError, OSError)):
            traceback.print_exc(file=sys.__stderr__)
        line = f"error: rank {rank} of {size}: {one_line(error, 400)}"  # ranks count from 0
        print(line, file=sys.__stderr__, flush=True)
        comm.Abort(2)


def _connect(size):
    """The communicator of the `size` processes that a launcher has started."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no MPI library
        why = f"{size} processes were started, but mpi4py cannot be used ({one_line(error)})"
        raise InputError(f"{why}; pip install mpi4py, or start one process") from None
    if MPI.COMM_WORLD.size != size:
        raise InputError(
            f"{size} processes were started, but mpi4py sees {MPI.COMM_WORLD.size}; use the mpirun "
            f"of the MPI that it loads ({one_line(MPI.Get_library_version(), 40)})"
        )
    return MPI.COMM_WORLD
