"""weakunet: where the lesions are, learned from nothing but their number (GP-Unet)."""

import os
import sys
from pathlib import Path


def _take_the_wide_kernels():
    """Have OpenBLAS, numpy's matrix library, use AVX-512 on AMD processors that have it.

    The OpenBLAS in numpy's wheels (0.3.31) takes a Zen 5 for a Haswell and multiplies at half its
    speed. It reads this variable once, when numpy is first imported.
    """
    try:
        cpu = Path("/proc/cpuinfo").read_text()
    except OSError:
        return
    has_avx512 = all(f" {flag} " in cpu for flag in ("avx512f", "avx512dq", "avx512bw", "avx512vl"))
    if "AuthenticAMD" in cpu and has_avx512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


if sys.platform == "linux" and "numpy" not in sys.modules:
    _take_the_wide_kernels()
