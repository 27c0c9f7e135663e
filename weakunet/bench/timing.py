"""Times in turn: how the bench compares two ways to compute the same thing.

In every round each side runs once, in turn, so that whatever else the machine does hits all of
them. Times are medians over the rounds; a ratio is the median of our time over PyTorch's in the
same round, for the fastest of PyTorch's ways in that precision.
"""

import numpy as np

ENDS = {"fp32": "", "tf32": "_tf32", "bf16": "_bf16"}  # how a precision's columns end
COLUMNS = []
for end in ENDS.values():
    COLUMNS += [f"ours{end}_s", f"torch{end}_s", f"ratio{end}"]


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
    medians = {side: float(np.median(own)) for side, own in times.items()}
    row = {}
    for mode, end in ENDS.items():
        ours, theirs = f"ours {mode}", [side for side in times if side.startswith(f"torch {mode}")]
        by = min(theirs, key=medians.get, default=None)
        row |= {f"ours{end}_s": medians.get(ours), f"torch{end}_s": medians.get(by)}
        row |= {f"torch{end}_by": by, f"ratio{end}": None}
        if by and ours in times:
            row[f"ratio{end}"] = float(np.median(np.divide(times[ours], times[by])))
    return row | {"naive_s": medians.get("naive fp32")}
