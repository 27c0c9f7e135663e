"""What decides a training run: one dataclass, from which the command makes its options."""

import argparse
import dataclasses
import json
import math

from weakunet.data.phantom import PRESETS
from weakunet.layers.conv.gpu import PRECISIONS
from weakunet.training.checkpoint import FLIPS
from weakunet.util.cli import InputError


def option(default, help, low=None, high=math.inf, choices=None):
    """A field with what `--help` says of it; numbers from `low` to `high`, both included."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Settings:
    """Everything that decides a run's result; each is a command-line option of the same name."""

    # fmt: off
    data: str | None = option(None, "cohort table (CSV); without one a phantom is simulated")
    phantom: str = option("tiny", "the phantom to simulate", choices=tuple(PRESETS))
    seed: int = option(0, "random seed for data, split, initial weights and order", 0)
    epochs: int = option(24, "passes over the training scans", 1)
    batch: int = option(4, "scans per step", 1)
    channels: tuple = option((8, 16, 32), "feature maps per level (the paper: 32 64 128)", 1)
    convs_per_level: int = option(1, "3x3x3 convolutions per level (the paper: 2)", 1)
    pool: str = option("lmax", "global pooling: sum of local maxima, maximum (the paper) or mean",
                       choices=("lmax", "max", "mean"))
    block: int = option(8, "edge of the blocks of lmax, in voxels; even", 1)
    gaussian_head: bool = option(False, "draw the last layer from a Gaussian too, as the paper")
    start_from: str = option("auto", "a best.npz whose weights to start from; none: random, as "
                             "the paper; auto: where volumes are large, those of small phantoms")
    lr: float = option(1.0, "learning rate; x0.3 and x0.1 after 70 and 90 %% of the epochs", 1e-30)
    rho: float = option(0.95, "Adadelta's decay of its running averages", 0, 0.9999)
    eps: float = option(1e-7, "Adadelta's epsilon; it sets the size of the first steps", 1e-30)
    flips: str = option("zyx", "axes along which scans are flipped at random", choices=FLIPS)
    shift_vox: int = option(2, "maximum random shift along each axis, in voxels", 0)
    rotate_deg: float = option(6.0, "maximum random rotation about each axis, in degrees; "
                               "none once the learning rate falls, or with --pool max", 0, 180)
    scale: float = option(0.0, "maximum random scaling, as a fraction", 0, 0.9)
    precision: str = option("auto", "of the convolutions; auto: tf32 on a GPU, fp32 on a CPU",
                            choices=PRECISIONS)
    patience: int = option(0, "stop after this many epochs without improvement; 0: never", 0)
    # fmt: on

    def __post_init__(self):
        self.channels = list(self.channels)
        if self.pool == "max":
            self.rotate_deg = 0.0  # with rotations the maximum does not take off
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), field.metadata
            name = "--" + field.name.replace("_", "-")
            if rule["choices"] and value not in rule["choices"]:
                raise InputError(f"{name} {value!r}: choose from {rule['choices']}")
            if rule["low"] is None:
                continue
            for number in value if isinstance(value, list) else [value]:
                if not rule["low"] <= number <= rule["high"] or math.isinf(number):  # or NaN
                    limits = f"{rule['low']} to {rule['high']}"
                    raise InputError(f"{name} {number}: must be a number from {limits}")


def add_options(parser):
    """Give an argparse parser an option per setting; one that is not given is not in its result."""
    for field in dataclasses.fields(Settings):
        choices, default, about = field.metadata["choices"], field.default, field.metadata["help"]
        if default is not None and default is not False:
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
            about += f" (default: {shown})"
        options = {"help": about}
        if default is False:
            options["action"] = "store_true"
        elif isinstance(default, tuple):
            options |= {"type": int, "nargs": "+"}
        else:
            options |= {"type": str if default is None else type(default), "choices": choices}
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, dest=field.name, default=argparse.SUPPRESS, **options)


def resumed_settings(path, given):
    """Settings of the run that wrote `path`; those given now (name -> value) must be the same.

    But for two: more epochs lengthen the run, and data may have moved (split.csv knows the scans).
    """
    try:
        earlier = {"precision": "fp32"}  # of a run that an older program began
        earlier |= json.loads(path.read_text(encoding="utf-8"))
        earlier.pop("restart", None)  # an option until 2026
        earlier = Settings(**earlier)
    except FileNotFoundError:
        raise InputError(f"{path}: no such run; name its folder with --out") from None
    except (ValueError, TypeError, InputError) as error:
        raise InputError(f"{path}: damaged ({error}); restore it or train anew") from None
    settings = dataclasses.replace(earlier, **given)
    for name in given:
        before, now = getattr(earlier, name), getattr(settings, name)
        if name == "epochs" and now > before:
            print(f"lengthened from {before} to {now} epochs; the learning rate falls later, too")
        elif name != "data" and now != before:
            option = "--" + name.replace("_", "-")
            raise InputError(
                f"{option} {now}: the run of {path} has {before}; "
                f"leave out {option}, or train into another folder"
            )
    return settings
