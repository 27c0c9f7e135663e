"""Compile every kernel for real GPUs without having one: registers, shared memory, spills.

NVRTC, CUDA's run-time compiler, is a library and needs no GPU. A kernel may use 255 registers per
thread; the fewer it uses, the more threads an SM (multiprocessor) holds at once. What does not fit
is "spilled" to slow memory: our kernels must not spill in float.
"""

import re

from weakunet.gpu import backend, cuda_source
from weakunet.layers.conv.packed import MIN_SM
from weakunet.util.cli import InputError, progress

# Pascal (the paper's own card, a Titan X), Volta, Ampere (A100), Hopper (H100, H200)
ARCHITECTURES = ("sm_61", "sm_70", "sm_80", "sm_90")
_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def targets(file):
    """(real, architecture) pairs that a .cu file is for. 'tf32' and 'bfloat16' are of kernels that
    take packed arrays; some take no others, and say how new the card must be (MIN_SM).
    """
    only_packed = "MIN_SM" in cuda_source.constants(file)
    oldest = {} if only_packed else dict.fromkeys(cuda_source.REAL_DTYPES.values(), 0)
    if "stored*" in cuda_source.source(file):
        oldest |= dict.fromkeys(cuda_source.PACKED_DTYPES.values(), MIN_SM)
    return [(r, a) for r, least in oldest.items() for a in ARCHITECTURES if int(a[3:]) >= least]


def compile_file(file, real, architecture):
    """Compile a .cu file ('layers/relu') for one of its `targets`.

    Returns a row per kernel (dict: kernel, real, architecture, registers, shared_bytes,
    spill_bytes) and the compiler's warnings (list of lines). Raises RuntimeError with the
    compiler's lines when the text does not compile, InputError where NVRTC cannot be loaded.
    """
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(cuda_source.source(file), f"{file}.cu", (), ())
    options = (f"-arch={architecture}", "--ptxas-options=-v", *backend.compiler_options(real))
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        log = nvrtc.getProgramLog(program).replace("\0", "")
        raise RuntimeError(f"{file}.cu ({real}, {architecture}) does not compile:\n{log}") from None
    log = nvrtc.getProgramLog(program).replace("\0", "")
    nvrtc.destroyProgram(program)
    rows = []
    for entry in _ENTRY.finditer(log):
        shared = re.findall(r"(\d+) bytes smem", entry["rest"]) or [0]
        row = {"kernel": entry["kernel"], "real": real, "architecture": architecture}
        row |= {"registers": int(entry["registers"]), "shared_bytes": int(shared[0])}
        rows.append(row | {"spill_bytes": int(entry["stores"]) + int(entry["loads"])})
    warnings = [line for line in log.splitlines() if "warning" in line and "deprecated" not in line]
    return rows, warnings


def _nvrtc():
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as error:  # ImportError, or CuPy's own for a library that is not there
        raise InputError(
            f"NVRTC cannot be loaded ({error}); install what requirements.txt lists"
        ) from error
    return nvrtc


def compile_all():
    """Compile every .cu file for all it is for, print the registers, and return the rows."""
    jobs = [(file, *target) for file in cuda_source.cu_files() for target in targets(file)]
    rows = []
    for job in progress(jobs, "compile"):
        compiled, warnings = compile_file(*job)
        rows += compiled
        print(*warnings, sep="\n", end="\n" * bool(warnings))
    print_registers(rows)
    return rows


def print_registers(rows):
    """Print a Markdown table: a line per kernel and dtype, its registers on each architecture."""
    print("| kernel | real | " + " | ".join(ARCHITECTURES) + " | shared bytes | spills |")
    print("| --- " * (len(ARCHITECTURES) + 4) + "|")
    for kernel, real in dict.fromkeys((row["kernel"], row["real"]) for row in rows):
        own = [row for row in rows if (row["kernel"], row["real"]) == (kernel, real)]
        registers = {row["architecture"]: row["registers"] for row in own}
        cells = [kernel, real, *(registers.get(sm, "-") for sm in ARCHITECTURES)]
        cells += [max(row[key] for row in own) for key in ("shared_bytes", "spill_bytes")]
        print("| " + " | ".join(map(str, cells)) + " |")
