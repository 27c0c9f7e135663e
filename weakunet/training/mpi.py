"""Training in several processes, each computing a part of every batch (optional: needs mpi4py).

    mpirun -n 4 python -m weakunet.train --batch 4

A rank, as MPI calls a process, predicts the counts of its own scans and sends them to all others,
because the loss looks at the whole batch. Then it sends dL/dcount back through its own scans. What
a weight gets from a batch is a sum over the scans, so it can be cut anywhere: dw = sum_r dw_r.
Every rank sends its dw_r to all others, adds up all of them in the order of the ranks and takes the
same step. So the weights stay equal, bit for bit, and are not sent. Rank 0 alone reads and writes.
"""

import contextlib
import os
import sys
import time
import traceback

from weakunet.gpu import backend
from weakunet.layers.loss import mse_backward
from weakunet.training.run import Run
from weakunet.util.cli import InputError, one_line
from weakunet.util.threads import cores, set_threads

LAUNCHERS = (  # of Open MPI, MPICH, srun: how many processes there are, and which one this is
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


class Ranks:
    """The processes of a run. Without MPI there is one, rank 0: it exchanges nothing."""

    def __init__(self, comm=None, node=None):
        self.comm, self.node, self.gather = comm, node, comm and comm.Allgather
        self.rank, self.size = (comm.rank, comm.size) if comm else (0, 1)

    def settle(self, batch, device):
        """Check the batch's size; take this process's GPU, or its fair number of cores."""
        if batch < self.size:
            raise InputError(f"--batch {batch}: raise it to at least the {self.size} processes")
        if self.comm and device == "cuda":
            self.gather = backend.join_gpus(self.rank, self.size, self.node.rank)
        elif self.comm:  # ranks that may use the same cores divide them
            allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
            set_threads(max(1, cores() // self.node.allgather(allowed).count(allowed)))

    def first(self, function, *args):
        """Call function(*args) in rank 0; every rank returns its result."""
        result = function(*args) if self.rank == 0 else None
        return self.comm.bcast(result) if self.comm else result

    def any(self, flag):
        """True in every rank if `flag` is true in one."""
        return any(self.comm.allgather(flag)) if self.comm else flag

    def part(self, n):
        """The slice of a batch of n scans that this rank computes; empty if there are too few."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, term):
        """The sum of the ranks' arrays (n,), in the order of the ranks."""
        terms = backend.array_module(term).empty((self.size, term.size), term.dtype)
        self.gather(term, terms)
        return sum(terms[1:], start=terms[0])  # MPI's own sum may take them in any order

    def sum_gradients(self, grads, busy=True):
        """Set `grads` (name -> array), in place, to their sums over all ranks that were `busy`."""
        terms = [grad.ravel() * float(busy) for grad in grads.values()]
        total = self.sum(backend.array_module(terms[0]).concatenate(terms))  # one message for all
        for grad in grads.values():
            grad[...], total = total[: grad.size].reshape(grad.shape), total[grad.size :]


class SharedRun(Run):
    """A run whose batches are split across the ranks."""

    def __init__(self, model, settings, out, ranks):
        super().__init__(model, settings, out)
        self.ranks, self.one_graph = ranks, False  # ranks exchange data within a step
        if ranks.rank > 0:
            self.save, self.save_epoch = lambda: None, self.as_learned  # rank 0 alone writes

    def prepare(self, scans, volumes):
        """Begin with the state of rank 0's run."""
        super().prepare(scans, volumes)
        bcast, pool = self.ranks.comm.bcast, self.model.global_pool
        state = self.epoch, self.batch, self.history, self.predicted, pool.blocks
        self.epoch, self.batch, self.history, self.predicted, pool.blocks = bcast(state)
        self.learned_elsewhere = bcast(self.learned_elsewhere)
        self.model.load(bcast(self.model.params))
        for average in self.optimizer.state.values():
            average[...] = bcast(average)

    def learn(self, scans, targets, places, matrices):
        """As Run.learn, of which each rank does its part."""
        part, predicted = self.ranks.part(len(targets)), targets * 0
        busy = part.start < part.stop  # an epoch's last batch may have fewer scans than ranks
        if busy:
            predicted[part] = self.forward(scans[part], places[part])
        predicted = self.ranks.sum(predicted)
        dcount = mse_backward(predicted, targets, self.common, self.bound)
        if busy:
            self.model.backward(dcount[part])
        self.ranks.sum_gradients(self.model.grads, busy)
        return predicted

    def validate(self):
        return self.ranks.first(super().validate)


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
        comm, node = _connect(size)
        yield Ranks(comm, node)
    except SystemExit:  # --help, Ctrl-C
        comm.Barrier()  # the first to leave ends all: when rank 0 has saved
        raise
    except Exception as error:
        time.sleep(rank > 0)  # where all fail alike, rank 0 says it and ends the others
        if comm is None:
            raise
        if not isinstance(error, (InputError, OSError)):
            traceback.print_exc(file=sys.__stderr__)
        print(f"error: rank {rank} of {size}: {one_line(error, 400)}", file=sys.__stderr__)
        comm.Abort(2)


def _connect(size):
    """The communicators of all `size` processes, and of those on this computer."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no MPI library
        why = f"{size} processes were started, but mpi4py cannot be used ({one_line(error)})"
        raise InputError(f"{why}; pip install mpi4py, or start one process") from None
    if MPI.COMM_WORLD.size != size:
        why, library = f"mpi4py sees {MPI.COMM_WORLD.size}", one_line(MPI.Get_library_version(), 30)
        raise InputError(f"{size} processes were started, but {why}; use the mpirun of {library}")
    return MPI.COMM_WORLD, MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
