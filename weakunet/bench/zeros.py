"""python -m weakunet.bench --zeros: how much of the gradient is zero, layer by layer, in training.

Behind a global max pooling one voxel of each map has a gradient, behind the mean of local maxima
one a block; every convolution spreads them by a voxel, and every ReLU and max pooling lets only
some through. For each convolution, of the dy that comes to it:

zeros    the share of values that are 0
voxels   the share of voxels where all maps are 0: what numpy leaves out, where it is most of them
dx, dw   the share of the tensor kernels' work that is left out on a GPU, to the input and to the
         weights: 8 maps of a tile with its halo, 32 maps of a smaller tile (tensor.cu).
         Channels that are upsampled (folded.cu) are not looked at apart: their tiles are
         larger, and a little less is left out, of work that is less than a third to begin with.

The last row of a network weighs its layers by their FLOP (nobody asks for the first one's dx). The
default network is looked at in the last steps of a short training on its own phantom, the
paper's in a first step on a scan of half the paper's size. Seen there: behind max 44 % of the work
of dx and 71 % of dw's is left out of the default network's backward, 56 and 69 % of the paper's;
behind the local maxima nothing, for they are one in every block, and a tile is larger.
"""

import numpy as np

from weakunet.layers.conv.conv3d import Conv3D
from weakunet.layers.conv.tensor import SIZES
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.util.cli import progress

STEPS, LOOK_AT, SCANS, BATCH = 200, 20, 200, 4  # steps, the last of them that count; scans
COLUMNS = [(key, "{}") for key in ("network", "pool", "layer", "maps", "size")]
SHARES = ("zeros", "voxels", "dx", "dw")
COLUMNS += [(share, "{:.1%}") for share in SHARES]


def measure(only=""):
    """Rows (dicts) of the table: those of the networks whose name contains `only`."""
    rows = []
    for name, train in (("default", _default), ("half-paper", _half_paper)):
        for pool in ("max", "lmax") if only in name else ():
            rows += [{"network": name, "pool": pool} | row for row in _summed_up(train(pool))]
    return rows


def _summed_up(watched):
    """A row for each layer, the mean over its steps, and one for all of them."""
    rows = []
    for steps in watched.values():
        means = {share: float(np.mean([step[share] for step in steps])) for share in SHARES}
        rows.append(steps[0] | means)
    total = {"layer": "all"}
    for share, layers in (("dx", rows[:-1]), ("dw", rows)):
        flop = [row["flop"] for row in layers]
        total[share] = float(np.average([row[share] for row in layers], weights=flop))
    return [*rows, total]


def _default(pool):
    from weakunet.data.phantom import simulate_cohort
    from weakunet.training.settings import Settings

    settings = Settings(pool=pool)
    cohort = simulate_cohort(settings.phantom, {"train": SCANS}, settings.seed)["train"]
    scans = np.stack([scan.volume.array for scan in cohort])[:, None]
    counts = np.array([scan.count for scan in cohort], np.float32)
    rng = np.random.default_rng(0)
    model = WeakUNet(settings.channels, pooling=pool, block=settings.block, rng=rng)
    model.start([scans[:32]], float(counts.mean()))
    optimizer = Adadelta(model.params, settings.lr, settings.rho, settings.eps)
    watched = {}
    for step in progress(range(STEPS), f"training, pool {pool}"):
        if step == STEPS - LOOK_AT:
            watched = watch(model)
        chosen = rng.choice(SCANS, BATCH, replace=False)
        model.backward(mse_backward(model.forward(scans[chosen]), counts[chosen]))
        optimizer.step(model.grads)
    return watched


def _half_paper(pool):
    from weakunet.bench.counts import PAPER
    from weakunet.data.phantom import simulate_cohort

    scan = simulate_cohort("paper", {"train": 1}, 0)["train"][0].volume.array
    scan = np.ascontiguousarray(scan[::2, ::2, ::2][:40, :64, :84])[None, None]
    model = WeakUNet(**PAPER, pooling=pool, rng=np.random.default_rng(0))
    model.start([scan], 50.0)
    watched = watch(model)
    model.backward(mse_backward(model.forward(scan), np.zeros(1, np.float32)))
    return watched


def watch(model):
    """layer -> list of rows, of every dy that comes to it from now on; the last layer first."""
    found = {}

    def watched(name, layer, backward):
        def look_and_go_on(dy, **how):
            flop = 2 * layer.params["w"].size * dy[:, 0].size
            found.setdefault(name, []).append({"layer": name, "flop": flop} | shares(dy))
            return backward(dy, **how)

        return look_and_go_on

    for name, layer in model._learning_layers():
        if isinstance(layer, Conv3D):
            layer.backward = watched(name, layer, layer.backward)
    return found


def shares(dy):
    """The shares of the module's first lines for one dy (N, C, D, H, W)."""
    n, c, *volume = dy.shape
    found = {"maps": c, "size": "x".join(map(str, (n, *volume)))}
    found |= {"zeros": np.mean(dy == 0), "voxels": np.mean(~dy.any(axis=1))}
    found["dx"] = _empty_tiles(dy, SIZES["CHANNELS"], "TILE", halo=1)
    found["dw"] = _empty_tiles(dy, SIZES["DW_MAPS"], "DW", halo=0)
    return found


def _empty_tiles(dy, maps, name, halo):
    """The share of tiles, with their halo and in groups of `maps` maps, where all of dy is 0."""
    tile = [SIZES[f"{name}_{axis}"] for axis in "ZYX"]
    padding = [(0, 0), (0, -dy.shape[1] % maps)]
    padding += [(halo, halo + -n % t) for n, t in zip(dy.shape[2:], tile, strict=True)]
    nonzero = np.pad(dy != 0, padding)
    nonzero = nonzero.reshape(len(dy), -1, maps, *nonzero.shape[2:]).any(axis=2)
    window = [t + 2 * halo for t in tile]
    windows = np.lib.stride_tricks.sliding_window_view(nonzero, window, axis=(2, 3, 4))
    windows = windows[:, :, :: tile[0], :: tile[1], :: tile[2]]
    return np.mean(~windows.any(axis=(-3, -2, -1)))
