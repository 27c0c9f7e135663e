"""Which device holds an array, how arrays get there, and how a CUDA kernel is launched on it.

The ARRAY decides: numpy arrays are processed by numpy on the CPU, CuPy arrays by the CUDA kernels
on the GPU that holds them. No other file imports CuPy, and there is no global device flag.
"""

import contextlib
import functools

import numpy as np

from weakunet.gpu import cuda_source
from weakunet.util.cli import InputError

THREADS_PER_BLOCK = 256


def is_cuda(array):
    """True if `array` lives on a GPU (a CuPy array)."""
    return type(array).__module__.partition(".")[0] == "cupy"


def array_module(array):
    """The library that holds `array`: numpy, or CuPy for an array on the GPU."""
    if isinstance(array, np.ndarray):
        return np
    import cupy

    return cupy


def pick_device(name="auto"):
    """'cpu' or 'cuda' for a user's `auto | cpu | cuda`; `auto` takes the GPU when there is one.

    Raises InputError where `cuda` was asked for and no GPU (or no CuPy) is there.
    """
    problem = None if name == "cpu" else _no_gpu_because()
    if name == "cuda" and problem:
        raise InputError(
            f"--device cuda: {problem}; use --device cpu, or auto to take what is there"
        )
    return "cpu" if name == "cpu" or problem else "cuda"


def _no_gpu_because():
    """Why there is no GPU, or None. Raises InputError where one cannot be used as things are."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    except OSError as error:  # CuPy makes its folder for compiled kernels at once
        raise InputError(
            f"{error.filename}: CuPy cannot use this folder ({error.strerror}); set CUPY_CACHE_DIR "
            "to one that can be written to, or use --device cpu"
        ) from None
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "no GPU was found"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no usable GPU ({error})"
    try:
        cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        remedy = "install this compiler of kernels, or use --device cpu"
        raise InputError(f"{error}; {remedy}") from None
    return None


def to_device(array, device):
    """`array` on `device` ('cpu' or 'cuda'), on a GPU in C order; no copy when it is there so."""
    if device == "cuda":
        import cupy

        return cupy.asarray(array, order="C")
    return to_host(array)


def to_host(array):
    """`array` as a numpy array; no copy when it is one already."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def join_gpus(rank, size, place):
    """gather(array, arrays): NCCL sends an array to `size` processes, which get all (size, n).

    Each takes a GPU, the n-th process (`place`) of a computer its n-th. Not yet tried: that takes
    a computer with two GPUs.
    """
    import cupy
    import cupyx.distributed

    cupy.cuda.Device(place % cupy.cuda.runtime.getDeviceCount()).use()
    nccl = cupyx.distributed.init_process_group(size, rank, use_mpi=True)
    return lambda array, arrays: nccl.all_gather(array, arrays, array.size)


def move(layer, device):
    """Move a layer's `params` and `grads` (name -> array) to `device`."""
    for arrays in (layer.params, layer.grads):
        arrays.update({name: to_device(value, device) for name, value in arrays.items()})


def device_name(device):
    """What a run prints about its device ('cpu' or 'cuda'): the GPU's name and memory."""
    if device == "cpu":
        return "cpu"
    import cupy

    number = cupy.cuda.Device().id
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    return f"cuda:{number} ({name}, {cupy.cuda.Device().mem_info[1] / 2**30:.0f} GiB)"


def compute_capability():
    """The generation of the current GPU: 80 is sm_80, Ampere."""
    import cupy

    return int(cupy.cuda.Device().compute_capability)


def device_memory():
    """Bytes of GPU memory: 'free_bytes', and 'held_bytes' by CuPy's pool for our arrays (it never
    shrinks, so at a run's end this is the run's peak).
    """
    import cupy

    held = cupy.get_default_memory_pool().total_bytes()
    return {"held_bytes": held, "free_bytes": cupy.cuda.Device().mem_info[0]}


def cache(volumes, device):
    """Move the training volumes to where they are used: to the GPU in float32, or in float16 (their
    intensities in [0, 1] keep 3 digits), if that leaves half of its memory free; else to the host.
    """
    if device == "cuda":
        free = device_memory()["free_bytes"]
        for dtype in (np.float32, np.float16):
            if volumes.size * np.dtype(dtype).itemsize < free / 2:
                return to_device(volumes.astype(dtype, copy=False), device)
    return volumes


@contextlib.contextmanager
def explain_out_of_memory():
    """Turn 'out of memory' (of the GPU or the computer) into one line that says what to lower."""
    try:
        yield
    except MemoryError as error:  # CuPy's OutOfMemoryError is one, too
        reason = " ".join(str(error).split()) or "no memory left"
        raise InputError(
            f"out of memory ({reason}); lower the batch size, the number of channels, or the "
            "volumes' size (a smaller ROI), or use --device cpu"
        ) from error


def launch(file, kernel, threads, args):
    """Run `kernel` of the CUDA text `file` ('layers/relu' is layers/relu.cu) on `args`.

    threads: how many threads are needed, in blocks of 256 (the last block may be partly idle, so
    the kernel guards its index); or (grid, block), each up to three numbers, for a kernel whose
    threads share tiles; or (grid, block, bytes) where it takes dynamic shared memory, too. args:
    CuPy arrays and numbers in the order of the kernel's parameters; their dtypes choose the
    compilation: float32, float64 or packed. The text is compiled once for each and GPU.

    Raises
    ------
    TypeError, ValueError: an argument that the kernel cannot take (see cuda_source.py).
    RuntimeError: the text does not compile; the message holds the compiler's lines.
    """
    checked, stored = cuda_source.check_arguments(file, kernel, args)
    device = _require_current_device(file, kernel, args)
    grid, block, shared = launch_sizes(threads)
    if min(grid) > 0:
        run = _compiled(file, kernel, stored, device, shared)
        run(grid, block, tuple(checked), shared_mem=shared)


def captured(run):
    """What `run()` returned, and a function that does the same again on the GPU, as one CUDA graph.

    `run()` is called twice: once to be computed, which compiles its kernels and fills a memory
    pool, and once to be captured, when nothing is computed. A graph knows addresses and numbers,
    not names: a replay reads and writes the same arrays and uses the same numbers (a learning
    rate), so whatever `run` allocates comes from a pool that gives it to nobody else while the
    function lives. `run` must not look at a result. A replay returns its arrays.
    """
    import cupy

    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()  # what `run` reads is there
    with stream, cupy.cuda.using_allocator(pool.malloc):
        first = run()
        stream.synchronize()
        stream.begin_capture()
        results = run()
        graph = stream.end_capture()

    def replay():
        graph.launch()
        return results

    replay.keeps = run, pool  # the arrays and the memory that the graph knows only by address
    return first, replay


def as_graph(step):
    """`step(*arrays)`, from the second call on replayed as one CUDA graph (see captured).

    Each call copies its arrays to where the graph reads them. Arrays of another shape than the
    first call's, as of an epoch's last batch, are computed without it.
    """
    inputs, replay = [], None

    def call(*arrays):
        nonlocal replay
        if replay is None:
            inputs[:] = [array.copy() for array in arrays]
            results, replay = captured(lambda: step(*inputs))
            return results
        if len(arrays[0]) != len(inputs[0]):
            return step(*arrays)
        for own, array in zip(inputs, arrays, strict=True):
            own[...] = array
        return replay()

    return call


def launch_sizes(threads):
    """((grid x, y, z), (block x, y, z), bytes) for `threads` as launch() takes it."""
    if not isinstance(threads, tuple):
        threads = (-(-threads // THREADS_PER_BLOCK),), (THREADS_PER_BLOCK,)
    grid, block = ((*size, 1, 1)[:3] for size in threads[:2])
    if max(grid[1:]) > 65535 or grid[0] >= 2**31:
        raise ValueError(f"a grid of {grid} blocks; CUDA takes (2^31 - 1, 65535, 65535)")
    return grid, block, threads[2] if len(threads) > 2 else 0


def _require_current_device(file, kernel, args):
    import cupy

    current = cupy.cuda.Device().id
    for parameter, arg in zip(cuda_source.kernels(file)[kernel], args, strict=True):
        if parameter.is_array and not is_cuda(arg):
            raise TypeError(f"{file}.cu, {kernel}: {parameter.name} is not on the GPU")
        if parameter.is_array and arg.device.id != current:
            raise ValueError(
                f"{file}.cu, {kernel}: {parameter.name} is on GPU {arg.device.id}, "
                f"but the current one is {current}"
            )
    return current


@functools.cache
def _compiled(file, kernel, stored, device, shared):
    import cupy

    try:
        function = _module(file, stored, device).get_function(kernel)
        if shared > 48 * 1024:  # so much has to be asked for
            function.max_dynamic_shared_size_bytes = shared
        return function
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(
            f"{cuda_source.cu_path(file)}, {kernel} ({stored}) does not compile:\n{error}"
        ) from error


@functools.cache
def _module(file, stored, device):
    import cupy

    return cupy.RawModule(code=cuda_source.source(file), options=compiler_options(stored))


def compiler_options(stored):
    """The options a .cu file is compiled with, for 'float', 'double', 'tf32' or 'bfloat16'."""
    real = "double" if stored == "double" else "float"
    return (f"-Dreal={real}", f"-Dstored={stored}", "--std=c++17")
