"""What each layer costs, counted: FLOPs, the least bytes it must move, and from both a time floor.

A layer cannot be faster than its arithmetic at the device's peak, nor than its traffic (every input
read once, every output written once, float32) at the memory's speed; the larger of the two is its
floor; `floor_tf32_s` is the same with the arithmetic of the convolutions that run on tensor cores
at their peak. The first convolution of a decoder level (upconv3d) is counted with its upsampling
folded in, as folded.py says, whether a rung does so or not. The floor of a step is the sum over
its layers, each a kernel of its own: fusing layers moves fewer bytes and can go below it.
`predicted_s` is our guess with convolutions on tensor cores (predictions.py) and all other layers
at their floor, `predicted_bf16_s` that in bfloat16; `host_s` is our guess of what the host takes to
queue a step's kernels. The larger of the two is how long the step will take. So this table can be
read before a GPU is at hand.
"""

from typing import NamedTuple

import numpy as np

from weakunet.bench.predictions import GPUS, LAUNCH, LAUNCHES, TF32, bf16_seconds, tf32_seconds

SMALL = {"channels": (8, 16, 32), "convs_per_level": 1}
PAPER = {"channels": (32, 64, 128), "convs_per_level": 2}
# name -> network and the size (N, 1, D, H, W) of a batch. Half of the paper's 84 x 128 x 168 would
# be 42 planes; 44 divide by 4, for the two poolings.
SIZES = {
    "default": (SMALL, (4, 1, 24, 48, 48)),
    "half-paper": (PAPER, (1, 1, 44, 64, 84)),
    "paper": (PAPER, (1, 1, 84, 128, 168)),
}
# float32 multiply-adds (not tensor cores) and memory, from the manufacturer's data sheets:
# name -> (FLOP/s, bytes/s). The paper's card is of the generation of the Titan X (Pascal).
DEVICES = {
    "h200": (67e12, 4.8e12),
    "a100": (19.5e12, 2.04e12),
    "titan-x": (11e12, 0.48e12),
}
COLUMNS = [
    ("name", "{}"),
    ("size", "{}"),
    ("times", "{}"),
    ("flop", "{:.3g}"),
    ("bytes", "{:.3g}"),
    ("floor_s", "{:.6f}"),
    ("bound", "{}"),
    ("floor_tf32_s", "{:.6f}"),
    ("predicted_s", "{:.6f}"),
    ("predicted_bf16_s", "{:.6f}"),
    ("host_s", "{:.6f}"),
]


class Layer(NamedTuple):
    """One layer of a network: `kind`, its channels, and its batch and volume (N, D, H, W), the
    larger one of a pooling or an upsampling. c_in are the skip connection's channels of upconv3d,
    which c_coarse upsampled ones join."""

    kind: str
    c_in: int
    c_out: int
    volume: tuple
    c_coarse: int = 0

    @property
    def name(self):
        channels = f"{self.c_in}+{self.c_coarse}" if self.c_coarse else f"{self.c_in}"
        convolution = self.kind in ("conv3d", "upconv3d")
        return f"{self.kind} {channels}" + (f"->{self.c_out}" if convolution else "")


def layers_of(network, shape):
    """All `Layer`s of a WeakUNet for a batch of `shape` (N, 1, D, H, W), in forward's order."""
    channels, convs = network["channels"], network["convs_per_level"]
    volumes = [(shape[0], *(size >> i for size in shape[2:])) for i in range(len(channels))]
    layers, last = [], len(channels) - 1

    def level(first, i):
        again, relu = (Layer(kind, *[channels[i]] * 2, volumes[i]) for kind in ("conv3d", "relu"))
        layers.extend([first, relu] + [again, relu] * (convs - 1))

    for i in range(len(channels)):
        c_in = channels[i - 1] if i else shape[1]
        level(Layer("conv3d", c_in, channels[i], volumes[i]), i)
        if i < last:
            layers.append(Layer("maxpool3d", channels[i], channels[i], volumes[i]))
    for i in reversed(range(last)):
        level(Layer("upconv3d", channels[i], channels[i], volumes[i], channels[i + 1]), i)
    layers.append(Layer("localmax", channels[0], channels[0], volumes[0]))
    return layers


def cost(layer, direction):
    """(FLOP, bytes) of a layer, `direction` 'forward' or 'backward' (to inputs and weights).

    Nobody asks for the gradient in the image: the first convolution (c_in = 1) has none.
    """
    kind, c, c_out = layer.kind, layer.c_in, layer.c_out
    voxels, forward = int(np.prod(layer.volume)), direction == "forward"
    if kind in ("conv3d", "upconv3d"):
        passes, coarse = 1 if forward or c == 1 else 2, layer.c_coarse
        elements = (c + coarse / 8 + c_out) * voxels + 27 * (c + coarse) * c_out
        flop = 2 * (27 * c + 8 * coarse) * c_out * voxels
        return passes * flop, passes * 4 * int(elements)
    if kind == "relu":
        return c * voxels, (2 if forward else 3) * 4 * c * voxels
    if kind == "maxpool3d":  # float32 in and out, and a byte for the winner
        return c * voxels, int(c * voxels * (4 + 4 / 8 + 1 / 8))
    return c * voxels, 4 * c * voxels  # localmax


def counted(device, only=""):
    """All rows of the table whose name contains `only`, for one of DEVICES, with no GPU needed."""
    flops, bandwidth = DEVICES[device]
    print(
        f"no GPU here: counted, with the floors of {device} "
        f"({flops / 1e12:.1f} TFLOP/s, {bandwidth / 1e12:.2f} TB/s on its data sheet)"
    )
    rows = [row for size in SIZES for row in count_rows(size, DEVICES[device], device)]
    unknown = {"device": f"{device} (counted)", "threads": None, "ours_s": None}
    unknown |= {"torch_s": None, "ratio": None}
    return [
        {key: row[key] for key in row if key not in ("layer", "direction")} | unknown
        for row in rows
        if only in row["name"]
    ]


def count_rows(size, device, gpu="h200"):
    """Rows (dicts) of the table for one of SIZES: a row per distinct layer and direction, with how
    often it occurs in a step, then the step and the prediction as a whole.

    device: (FLOP/s, bytes/s) of the device whose floor is asked for. gpu: whose time is predicted.
    """
    network, shape = SIZES[size]
    layers, rows = layers_of(network, shape), []
    for layer in dict.fromkeys(layers):
        for direction in ("forward", "backward"):
            row = {"name": f"{layer.name} {direction}", "size": "x".join(map(str, layer.volume))}
            row["predicted_s"] = seconds = tf32_seconds(layer, direction, gpu)
            row["predicted_bf16_s"] = bf16_seconds(layer, direction, gpu)
            rows.append(row | _floor(*cost(layer, direction), device))
            peak = TF32[gpu] if layer.kind in ("conv3d", "upconv3d") and seconds else device[0]
            rows[-1]["floor_tf32_s"] = max(rows[-1]["flop"] / peak, rows[-1]["bytes"] / device[1])
            rows[-1] |= {"times": layers.count(layer), "layer": layer, "direction": direction}
    for name, directions in (("step", ("forward", "backward")), ("predict", ("forward",))):
        own = [row for row in rows if row.get("direction") in directions]
        summed = ("flop", "bytes", "floor_s", "floor_tf32_s")
        total = {key: sum(row["times"] * row[key] for row in own) for key in summed}
        row = {"name": f"{name}:{size}", "size": "x".join(map(str, shape))} | total
        for key in ("predicted_s", "predicted_bf16_s"):
            row[key] = sum(_guess(row, key) for row in own) if gpu in GPUS else None
        row["host_s"] = LAUNCHES[size] * LAUNCH if name == "step" and size in LAUNCHES else None
        rows.append(row | {"times": 1})
    return rows


def _guess(row, key):
    return row["times"] * (row["floor_s"] if row[key] is None else row[key])


def _floor(flop, traffic, device):
    arithmetic, memory = flop / device[0], traffic / device[1]
    bound = "arithmetic" if arithmetic > memory else "memory"
    return {"flop": flop, "bytes": traffic, "floor_s": max(arithmetic, memory), "bound": bound}
