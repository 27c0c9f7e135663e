"""Checkpoints: plain .npz files with one array per parameter, never pickled.

`best.npz` holds a network ready to predict; `last.npz` also holds what training needs to go on as
if it had never stopped. A damaged file is refused by name: zip's checksums cover every byte.
"""

import json
import math
import zipfile
from pathlib import Path

import numpy as np

from weakunet.data.headers import MAX_VOXELS
from weakunet.gpu.backend import to_host
from weakunet.model import WeakUNet
from weakunet.util.cli import InputError, atomic_path, one_line

FORMAT = "weakunet-1"
FLIPS = ("", "x", "y", "z", "yx", "zx", "zy", "zyx")  # axes along which training may flip


def save_checkpoint(path, model, training=None):
    """Write the model and, if given, the state to resume from: `training`, name -> value."""
    arrays = {name: to_host(value) for name, value in model.params.items()}
    arrays |= {f"training.{name}": to_host(value) for name, value in (training or {}).items()}
    header = {"format": FORMAT, "settings": model.settings}
    header |= {"shape": model.shape, "flips": model.flips, "blocks": model.global_pool.blocks}
    header |= {"spacing_mm": model.spacing_mm}
    with atomic_path(path) as temporary:
        np.savez(temporary, header=np.array(json.dumps(header)), **arrays)


def load_checkpoint(path):
    """The model (on the CPU) and the training state (name -> array; empty in `best.npz`).

    Needs no more memory than a few times the file's size. Raises InputError where the file is
    missing, damaged or not a checkpoint of this program.
    """
    arrays = _read_arrays(path)
    try:
        header = {"flips": "", "blocks": None, "spacing_mm": None}  # older files do not say
        header |= json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this program reads {FORMAT!r}")
        training = {name: arrays.pop(name) for name in list(arrays) if name.startswith("training.")}
        _check_settings(header["settings"], header["shape"], arrays)
        settings = {"upsampling": True, "region": False} | header["settings"]  # older: not said
        model = WeakUNet(**settings, rng=np.random.default_rng(0))
        if model.settings != settings:
            raise ValueError("another program wrote its settings")
        model.shape, model.flips = tuple(header["shape"]), header["flips"]
        model.global_pool.blocks = blocks = header["blocks"]
        if not (blocks is None or 0 < blocks <= MAX_VOXELS):
            raise ValueError(f"it divides by {blocks!r} blocks")
        if (spacing_mm := header["spacing_mm"]) is not None:
            model.spacing_mm = tuple(float(mm) for mm in spacing_mm)
            if len(spacing_mm) != 3 or not 0 < min(model.spacing_mm) <= max(model.spacing_mm) < 1e6:
                raise ValueError(f"it was trained on voxels of {spacing_mm} mm")
        if model.flips not in FLIPS:
            raise ValueError(f"it was trained on scans flipped along {model.flips!r}")
        with np.errstate(over="ignore"):  # too large becomes infinite, which load refuses
            model.load({name: array.astype(np.float32) for name, array in arrays.items()})
    except Exception as error:  # a header can say anything
        raise InputError(
            f"{path}: not a checkpoint of this network ({one_line(error, 200)}); "
            "name a best.npz that train wrote"
        ) from None
    return model, {name.removeprefix("training."): value for name, value in training.items()}


def _read_arrays(path):
    """name -> array. Compressed arrays are refused: they could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > Path(path).stat().st_size:
            raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds files that are not arrays")
        return arrays
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; name a best.npz that train wrote") from None
    except Exception as error:  # zip, zlib, tokenize, memory: numpy lets them all through
        raise InputError(
            f"{path}: damaged or not a checkpoint ({one_line(error, 200)}); "
            "use another copy or train again"
        ) from None


def _check_settings(settings, shape, arrays):
    """Refuse settings that do not fit the arrays, before a network of that size is built."""
    channels, convs = settings["channels"], settings["convs_per_level"]
    numbers = [*channels, convs, settings["block"], *shape]
    if not all(type(number) is int and 1 <= number <= 2**15 for number in numbers):
        raise ValueError("its numbers of maps, convolutions or voxels are impossible")
    if len(shape) != 3 or math.prod(shape) > MAX_VOXELS:
        raise ValueError(f"it was trained on scans of {shape} voxels")
    square = channels if convs > 1 else channels[:-1]  # levels with a convolution from c to c
    weights = [a * b for a, b in zip((1, *channels), channels, strict=False)]
    largest = 27 * max(weights + [c * c for c in square])
    floats = all(array.dtype.kind == "f" for array in arrays.values())
    if not floats or max(array.size for array in arrays.values()) < largest:
        raise ValueError("its arrays do not fit its settings")
    if convs * len(channels) > len(arrays):
        raise ValueError("its settings name more layers than it holds")


def load_model(path):
    """The model of a checkpoint, ready to predict (see `load_checkpoint`)."""
    return load_checkpoint(path)[0]
