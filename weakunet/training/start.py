"""Starting weights: where volumes are large, learning starts from small simulated scans (ours).

In a large volume one lesion is a small part of the pooled features, and the scale of the count lags
behind them for many epochs. Weights that have learned on small simulated scans, also from counts
alone, tell lesions from the first epoch on. Small volumes start from random weights, as the paper's
do; `--start-from none` does so always.

The weights beside this file are those of the default network. This command made them (best.npz):

    python -m weakunet.train --seed 1 --out runs/start
"""

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from weakunet.data.load import load_scans
from weakunet.model import WeakUNet
from weakunet.training.checkpoint import load_model
from weakunet.training.loop import train
from weakunet.training.run import WEIGHTS, Run
from weakunet.training.settings import Settings
from weakunet.util import resume

LARGE_VOX = 40_000  # (D, H, W) of the phantoms: tiny 16,384, standard 55,296
SHIPPED = Path(__file__).with_name("start.npz")
OF_NETWORK = "channels", "convs_per_level", "pool", "block"  # settings that shape a network


def new_network(settings, **options):
    """The network of `settings` with its first, random weights; options: more of WeakUNet's."""
    shape = (getattr(settings, name) for name in OF_NETWORK)
    return WeakUNet(*shape, rng=np.random.default_rng([settings.seed, WEIGHTS]), **options)


def starting_weights(settings, scans, runs, device, precision, stop):
    """The checkpoint to start from; None: random weights.

    scans: the training scans. A network other than the default one first learns on small simulated
    scans, in a folder of `runs`, and is kept there for the next run. Says what it does. None, too,
    if `stop()` ended that.
    """
    if settings.start_from not in ("auto", "none"):
        return Path(settings.start_from)
    largest = max(scan.volume.array.size for scan in scans)
    if settings.start_from == "none" or settings.gaussian_head or largest < LARGE_VOX:
        return None
    if new_network(settings).settings == load_model(SHIPPED).settings:
        path = SHIPPED
    else:
        own = {name: getattr(settings, name) for name in OF_NETWORK}
        small = Settings(start_from="none", **own)
        maps = "-".join(map(str, small.channels))
        folder = runs / f"start-{maps}-x{small.convs_per_level}-{small.pool}{small.block}"
        path = folder / "best.npz"
        wanted = dataclasses.asdict(small), ()
        if resume.noted(folder, "start", *wanted, [path]) is None:
            print(f"large volumes: the network first learns on small simulated scans, {folder}")
            if not resume.noted(folder, "begun", *wanted, [folder / "last.npz"]):
                shutil.rmtree(folder, ignore_errors=True)  # of an older program
                resume.note(folder, "begun", resume.inputs(*wanted))
            run = Run(new_network(small).to(device, precision), small, folder)
            if run.started():
                run.load()
            if train(run, load_scans(small, ("train", "val")), stop):
                return None
            resume.note(folder, "start", resume.inputs(*wanted))
    print(
        f"large volumes: starting from weights learned on small simulated scans, {path} "
        "(--start-from none: from random ones)",
        flush=True,
    )
    return path
