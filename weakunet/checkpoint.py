"""Checkpoints: plain .npz files, one array per parameter, never pickled.

`best.npz` holds a network ready to predict; `last.npz` also holds what training needs to go on as
if it had never stopped. Both are written beside their final name and renamed, so a kill leaves the
old file or the new one, and both are read whole: zip's checksums reveal any damage, and a damaged
file is refused by name.
"""

import json
import zipfile
import zlib

import numpy as np

from weakunet.backend import to_host
from weakunet.cli import InputError, atomic_path
from weakunet.model import WeakUNet

FORMAT = "weakunet-1"


def save_checkpoint(path, model, training=None):
    """Write the model and, with `training` (name -> value), the state to resume from."""
    arrays = {name: to_host(value) for name, value in model.params.items()}
    arrays |= {f"training.{name}": to_host(value) for name, value in (training or {}).items()}
    header = json.dumps({"format": FORMAT, "settings": model.settings, "shape": model.shape})
    with atomic_path(path) as temporary:
        np.savez(temporary, header=np.array(header), **arrays)


def load_checkpoint(path):
    """The model (on the CPU) and the training state (name -> array; empty in `best.npz`).

    Raises
    ------
    InputError: the file is missing, damaged, or not a checkpoint of this program.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; name a best.npz that train wrote") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: damaged or not a checkpoint ({error}); use another copy or train again"
        ) from None
    try:
        header = json.loads(str(arrays.pop("header")))
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}, this program reads {FORMAT!r}")
        model = WeakUNet(**header["settings"], rng=np.random.default_rng(0))
        model.shape = tuple(int(size) for size in header["shape"])
        training = {name: arrays.pop(name) for name in list(arrays) if name.startswith("training.")}
        model.load(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a checkpoint of this network ({error}); name a best.npz that train wrote"
        ) from None
    return model, {name.removeprefix("training."): value for name, value in training.items()}


def load_model(path):
    """The model of a checkpoint, ready to predict (see `load_checkpoint`)."""
    return load_checkpoint(path)[0]
