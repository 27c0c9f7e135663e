"""What a .cu file says about itself: its kernels, their parameters, its #define'd numbers.

A CUDA kernel gets bare pointers and numbers: nothing stops a caller from passing float64 data to a
float kernel, a transposed view (its strides would be ignored), or an 8-byte integer for a 4-byte
one. So every argument is checked, before a launch, against the parameter list in the .cu text.

Kernels are written once for float and double: the element type is called `real` and is given to the
compiler as -Dreal=float or -Dreal=double. What is called `stored` is real, too, or one of the
rounded formats of packed arrays, which integers hold (layers/conv/packed.py).
"""

import functools
import re
from numbers import Integral, Real
from pathlib import Path
from typing import NamedTuple

import numpy as np

REAL_DTYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
PACKED_DTYPES = {np.dtype(np.uint32): "tf32", np.dtype(np.uint16): "bfloat16"}
_DTYPES = {
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "int": np.dtype(np.int32),
    "long long": np.dtype(np.int64),
    "unsigned char": np.dtype(np.uint8),
}
# looked up here in every launch: asking numpy each time took longer than all other checks
_LIMITS = {
    dtype: (np.iinfo(dtype).min, np.iinfo(dtype).max)
    for dtype in _DTYPES.values()
    if dtype.kind != "f"
}
_KERNEL = re.compile(
    r'extern "C" __global__ void(?:\s+__launch_bounds__\([^)]*\))?\s+(\w+)\s*\(([^)]*)\)'
)
_DEFINE = re.compile(r"^#define (\w+) (\d+)\b", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "([\w/]+\.cuh?)"$', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class Parameter(NamedTuple):
    """One parameter of a kernel: its type is real, stored, float, double, int, long long or
    unsigned char.
    """

    name: str
    type: str
    is_array: bool


def cu_path(file):
    """The path of 'layers/relu': the text layers/relu.cu beside layers/relu.py."""
    return Path(__file__).parent.parent / f"{file}.cu"


def cu_files():
    """The names of all .cu files of the package: 'augment', 'layers/relu', ..."""
    package = Path(__file__).parent.parent
    paths = sorted(package.rglob("*.cu"))
    return [path.relative_to(package).with_suffix("").as_posix() for path in paths]


@functools.cache
def source(file):
    """The text of a .cu file, with the text of what it includes."""
    return read_with_includes(cu_path(file))


def read_with_includes(path):
    """As `source`, of any file and never from memory."""
    text = path.read_text(encoding="utf-8")

    def splice(match):
        included = read_with_includes(path.parent / match[1])
        next_line = text.count("\n", 0, match.end()) + 2
        return f'#line 1 "{match[1]}"\n{included}#line {next_line} "{path.name}"'

    return _INCLUDE.sub(splice, text)


@functools.cache
def constants(file):
    """The whole numbers that a .cu file #defines (tile sizes), by name."""
    return {name: int(value) for name, value in _DEFINE.findall(source(file))}


@functools.cache
def kernels(file):
    """The kernels of a .cu file: name -> tuple of `Parameter`."""
    text = _COMMENT.sub("", source(file))
    return {
        name: tuple(_parse_parameter(declaration) for declaration in declarations.split(","))
        for name, declarations in _KERNEL.findall(text)
    }


def _parse_parameter(declaration):
    words = declaration.replace("*", " * ").split()
    type_words = [word for word in words[:-1] if word not in ("const", "__restrict__", "*")]
    return Parameter(words[-1], " ".join(type_words), "*" in words)


def check_arguments(file, kernel, args):
    """Check `args` against the parameter list of `kernel` in `file`.

    Returns the arguments with every number in the kernel's own width, and the name of `stored`:
    'float' or 'double', the dtype of the first real array ('float' when there is none), or 'tf32'
    or 'bfloat16' where the first stored array is packed.

    Raises TypeError or ValueError that names the kernel and the argument.
    """
    where = f"{file}.cu, {kernel}"
    if kernel not in kernels(file):
        raise ValueError(f"{where}: no such kernel; there are {', '.join(kernels(file))}")
    parameters = kernels(file)[kernel]
    if len(args) != len(parameters):
        names = ", ".join(parameter.name for parameter in parameters)
        raise TypeError(f"{where}: {len(args)} arguments for {len(parameters)} ({names})")
    dtype = _dtype_of("real", REAL_DTYPES, parameters, args)
    dtype = dtype or _dtype_of("stored", REAL_DTYPES, parameters, args) or np.dtype(np.float32)
    stored = _dtype_of("stored", PACKED_DTYPES, parameters, args) or dtype
    own = _DTYPES | {"real": dtype, "stored": stored}
    checked = []
    for parameter, arg in zip(parameters, args, strict=True):
        expected = own[parameter.type]
        check = _check_array if parameter.is_array else _check_number
        checked.append(check(f"{where}: {parameter.name}", arg, expected))
    return checked, (REAL_DTYPES | PACKED_DTYPES)[stored]


def _dtype_of(kind, names, parameters, args):
    """The dtype of the first array of type `kind`, if it is among `names`."""
    for parameter, arg in zip(parameters, args, strict=True):
        if parameter.is_array and parameter.type == kind:
            dtype = getattr(arg, "dtype", None)
            return dtype if dtype in names else None
    return None


def _check_array(where, arg, dtype):
    if not hasattr(arg, "dtype") or not hasattr(arg, "flags"):
        raise TypeError(f"{where} must be an array, not {type(arg).__name__}")
    if arg.dtype != dtype:
        raise TypeError(f"{where} must be {dtype}, not {arg.dtype}")
    if not arg.flags.c_contiguous:
        raise ValueError(f"{where} is a view with strides {arg.strides}; copy it first")
    return arg


def _check_number(where, arg, dtype):
    wanted = Real if dtype.kind == "f" else Integral
    if not isinstance(arg, wanted):
        raise TypeError(f"{where} must be one number ({dtype}), not {type(arg).__name__}")
    if dtype in _LIMITS and not _LIMITS[dtype][0] <= arg <= _LIMITS[dtype][1]:
        raise ValueError(f"{where} = {arg} does not fit into {dtype}")
    return dtype.type(arg)
