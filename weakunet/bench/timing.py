"""Times in turn: how the bench compares two ways to compute the same thing.

In every round each side runs once, in turn, so that whatever else the machine does hits all of
them. Times are medians over the rounds; a ratio is the median of our time over PyTorch's in the
same round, for the fastest of PyTorch's ways in that precision.
"""

import numpy as np

ENDS = {"fp32": "", "tf32": "_tf32", "bf16": "_bf16"}  # how a precision's columns end
COLUMNS = []
for end in ENDS.values():
    COLUMNS += [(f"ours{end}_s", "{:.6f}"), (f"torch{end}_s", "{:.6f}"), (f"ratio{end}", "{:.2f}")]


def in_turn(runs, rounds, seconds, warm_up=1):
    """{side: [seconds per round]} of the functions in `runs`, taken in turn.

    seconds: the clock, a function that runs one of them and returns how long it took.
    """
    times = {side: [] for side in runs}
    for i in range(-warm_up, rounds):
        for side, run in runs.items():
            taken = seconds(run)
            if i >= 0:
                times[side].append(taken)
    return times


def compared(times):
    """The columns of a row: our time, PyTorch's fastest, which way that was, and the ratio."""
    row = {}
    for mode, end in ENDS.items():
        ours = times.get(f"ours {mode}")
        theirs = {side: t for side, t in times.items() if side.startswith(f"torch {mode}")}
        by = min(theirs, key=lambda side: np.median(theirs[side]), default=None)
        row[f"ours{end}_s"] = None if ours is None else float(np.median(ours))
        row[f"torch{end}_s"] = None if by is None else float(np.median(theirs[by]))
        row[f"torch{end}_by"] = by
        both = ours is not None and by is not None
        row[f"ratio{end}"] = float(np.median(np.divide(ours, theirs[by]))) if both else None
    return row
