"""What each layer costs, counted: FLOPs, the fewest bytes it must move, and the floor they set.

A layer cannot be faster than its arithmetic at the device's peak, nor than its traffic (every input
read once, every output written once, in float32) at the memory's speed. The slower of the two is
its floor: a limit, not a prediction. `floor_tf32_s` takes the tensor cores' peak for convolutions.
The decoder's upsample_conv3d is counted as conv/folded.py computes it. The floor of a step is the
sum over its layers, each a kernel of its own; fused layers move fewer bytes and can go below it.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np

from weakunet.training.settings import Settings


class Step(NamedTuple):
    """A training step or prediction: WeakUNet's arguments and a batch's shape (N, 1, D, H, W)."""

    name: str
    network: dict
    shape: tuple


NETWORK = {key: getattr(Settings(), key) for key in ("channels", "convs_per_level", "block")}
PAPER = NETWORK | {"channels": (32, 64, 128), "convs_per_level": 2}
STEPS = [
    Step("default", NETWORK, (4, 1, 16, 32, 32)),  # what `python -m weakunet.train` trains on
    Step("default", NETWORK, (4, 1, 24, 48, 48)),
    # half of the paper's 84 planes would be 42; 44 divide by 4, for the two poolings
    Step("half-paper", PAPER, (1, 1, 44, 64, 84)),
    Step("paper", PAPER, (1, 1, 84, 128, 168)),
]


class Device(NamedTuple):
    """Multiply-adds in FLOP/s, in float32 and in TF32 on tensor cores, and memory in bytes/s."""

    fp32: float
    tf32: float
    memory: float


# from the manufacturer's data sheets; the last is the paper's card, without tensor cores
DEVICES = {
    "h200": Device(67e12, 495e12, 4.8e12),
    "h100": Device(67e12, 495e12, 3.35e12),
    "a100": Device(19.5e12, 156e12, 2.04e12),
    "titan-x": Device(11e12, 11e12, 0.48e12),
}
COLUMNS = "name size times flop bytes floor_s bound floor_tf32_s".split()


class Layer(NamedTuple):
    """One layer of a network: its kind, channels, batch and volume.

    volume is (N, D, H, W), the larger one of a pooling or an upsampling. An upsample_conv3d has
    c_in channels from the skip connection and c_coarse upsampled ones.
    """

    kind: str
    c_in: int
    c_out: int
    volume: tuple
    c_coarse: int = 0

    @property
    def is_convolution(self):
        return self.kind in ("conv3d", "upsample_conv3d")

    @property
    def name(self):
        channels = f"{self.c_in}+{self.c_coarse}" if self.c_coarse else f"{self.c_in}"
        return f"{self.kind} {channels}" + (f"->{self.c_out}" if self.is_convolution else "")


def layers_of(network, shape):
    """All `Layer`s of a WeakUNet for a batch of `shape` (N, 1, D, H, W), in forward's order."""
    channels, convs = network["channels"], network["convs_per_level"]
    volumes = [(shape[0], *(size >> i for size in shape[2:])) for i in range(len(channels))]
    layers, last = [], len(channels) - 1

    def level(first, i):
        again, relu = (Layer(kind, *[channels[i]] * 2, volumes[i]) for kind in ("conv3d", "relu"))
        layers.extend([first, relu] + [again, relu] * (convs - 1))

    for i, c_in in enumerate((1, *channels[:-1])):
        level(Layer("conv3d", c_in, channels[i], volumes[i]), i)
        if i < last:
            layers.append(Layer("maxpool3d", channels[i], channels[i], volumes[i]))
    for i in reversed(range(last)):
        level(Layer("upsample_conv3d", channels[i], channels[i], volumes[i], channels[i + 1]), i)
    return [*layers, Layer("localmax", channels[0], channels[0], volumes[0])]


def cost(layer, direction):
    """(FLOP, bytes) of a layer, `direction` 'forward' or 'backward' (to inputs and weights).

    The gradient with respect to the image is not needed: the first convolution (c_in = 1) has none.
    """
    kind, c, c_out = layer.kind, layer.c_in, layer.c_out
    voxels, forward = int(np.prod(layer.volume)), direction == "forward"
    if layer.is_convolution:
        passes, coarse = 1 if forward or c == 1 else 2, layer.c_coarse
        elements = (c + coarse / 8 + c_out) * voxels + 27 * (c + coarse) * c_out
        flop = 2 * (27 * c + 8 * coarse) * c_out * voxels
        return passes * flop, passes * 4 * int(elements)
    if kind == "relu":
        return c * voxels, (2 if forward else 3) * 4 * c * voxels
    if kind == "maxpool3d":  # float32 in and out, and one byte for each winner
        return c * voxels, int(c * voxels * (4 + 4 / 8 + 1 / 8))
    return c * voxels, 4 * c * voxels  # localmax


def rows(device, only="", steps=None):
    """[(row, (`Layer` or `Step`, what))] of `steps` (None: STEPS), names containing `only`.

    A row (dict) per distinct layer and direction ('forward' or 'backward'), with how often it
    occurs in a step, then the whole 'step' and 'predict'. device: a `Device`, or None: no floors.
    """
    found = []
    for step in steps or STEPS:
        whole = {what: _row(f"{what}:{step.name}", step.shape) for what in ("step", "predict")}
        for layer, times in Counter(layers_of(step.network, step.shape)).items():
            for direction in ("forward", "backward"):
                row = _row(f"{layer.name} {direction}", layer.volume, times)
                costs = _costs(layer, direction, device)
                found.append((row | costs, (layer, direction)))
                for total in whole.values() if direction == "forward" else [whole["step"]]:
                    for key in ("flop", "bytes", "floor_s", "floor_tf32_s"):
                        if key in costs:
                            total[key] = total.get(key, 0) + times * costs[key]
        found += [(row, (step, what)) for what, row in whole.items()]
    return [(row, case) for row, case in found if only in row["name"]]


def _row(name, shape, times=1):
    return {"name": name, "size": "x".join(map(str, shape)), "times": times}


def _costs(layer, direction, device):
    flop, traffic = cost(layer, direction)
    row = {"flop": flop, "bytes": traffic}
    if device is None:
        return row
    memory, arithmetic = traffic / device.memory, flop / device.fp32
    row["floor_s"] = max(arithmetic, memory)
    row["bound"] = "arithmetic" if arithmetic > memory else "memory"
    if layer.is_convolution:
        arithmetic = flop / device.tf32
    return row | {"floor_tf32_s": max(arithmetic, memory)}


def to_time(device, only, steps=None):
    """Of `rows` those that are timed: convolutions, steps and predictions."""
    cases = rows(device, only, steps)
    return [(row, case) for row, case in cases if getattr(case[0], "is_convolution", True)]


def counted(device, only=""):
    """The table that needs no GPU: rows whose name contains `only`, for one of DEVICES."""
    peak = DEVICES[device]
    print(
        f"counted, with the floors of a {device} ({peak.fp32 / 1e12:.1f} TFLOP/s in float32, "
        f"{peak.tf32 / 1e12:.0f} in TF32, {peak.memory / 1e12:.2f} TB/s on its data sheet)"
    )
    unknown = dict.fromkeys(("threads", "ours_s", "torch_s", "ratio"))
    return [row | {"device": f"{device} (counted)"} | unknown for row, _ in rows(peak, only)]
