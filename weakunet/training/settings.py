"""What decides a training run: one dataclass, from which the command makes its options."""

import dataclasses

from weakunet.data.phantom import PRESETS
from weakunet.layers.conv.gpu import PRECISIONS
from weakunet.training.checkpoint import FLIPS
from weakunet.util.cli import InputError


def option(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass
class Settings:
    """Everything that decides a run's result; each is a command-line option of the same name."""

    data: str | None = option(None, "cohort table (CSV); without it a phantom cohort is simulated")
    phantom: str = option("tiny", "which phantom to simulate: tiny, mid or standard")
    seed: int = option(0, "of the simulated data, the split, the first weights and the order")
    epochs: int = option(16, "passes over the training scans")
    batch: int = option(4, "scans per step")
    channels: tuple = option((8, 16, 32), "feature maps per level (the paper's scale: 32 64 128)")
    convs_per_level: int = option(1, "3x3x3 convolutions per level (the paper's scale: 2)")
    pool: str = option("lmax", "global pooling: lmax (mean of local maxima), max (paper) or mean")
    block: int = option(4, "edge of lmax's blocks, in voxels")
    gaussian_head: bool = option(
        False, "draw the last layer from a Gaussian too, as the paper does"
    )
    restart: int = option(6, "epochs after which the last layer starts again, once; 0: never")
    start_from: str | None = option(None, "start from the weights of this best.npz, same network")
    lr: float = option(1.0, "Adadelta's factor on its own step; falls at 70 % and 90 % of the end")
    rho: float = option(0.95, "Adadelta's decay of its running averages")
    eps: float = option(1e-7, "Adadelta's guard against division by 0: its first steps")
    flips: str = option("zyx", "axes along which scans are mirrored at random")
    shift_vox: int = option(2, "random shift along each axis, at most, in voxels")
    rotate_deg: float = option(0.0, "random rotation about each axis, at most, in degrees")
    scale: float = option(0.0, "random scaling, at most, as a fraction")
    precision: str = option("auto", "of the convolutions; auto: tf32 on a GPU, fp32 on a CPU")
    patience: int = option(0, "stop after so many epochs without a better one; 0: never")

    def __post_init__(self):
        self.channels = list(self.channels)
        for name, rule in CHOICES.items():
            if getattr(self, name) not in rule["choices"]:
                raise InputError(f"{name} {getattr(self, name)!r}: choose from {rule['choices']}")
        for name, low in LOWEST.items():
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if not low <= value < float("inf"):
                    option_name = name.replace("_", "-")
                    raise InputError(f"--{option_name} {value}: must be at least {low}")


LOWEST = {
    "seed": 0,
    "epochs": 1,
    "batch": 1,
    "channels": 1,
    "convs_per_level": 1,
    "block": 1,
    "restart": 0,
    "lr": 0,
    "rho": 0,
    "eps": 0,
    "shift_vox": 0,
    "rotate_deg": 0,
    "scale": 0,
    "patience": 0,
}
CHOICES = {
    "precision": {"choices": PRECISIONS},
    "phantom": {"choices": tuple(PRESETS)},
    "pool": {"choices": ("lmax", "max", "mean")},
    "flips": {"choices": FLIPS},
}
