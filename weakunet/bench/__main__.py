"""python -m weakunet.bench: how fast each layer and the whole training step are, and beside what.

    python -m weakunet.bench            the GPU in 3 precisions; without one, FLOPs, bytes, floors
    python -m weakunet.bench --cpu      numpy on the CPU
    python -m weakunet.bench --compile  registers and spills of every kernel; needs no GPU
    python -m weakunet.bench --check    does the GPU compute what numpy does?
    python -m weakunet.bench --zeros    how much of the gradient is zero; needs no GPU

PyTorch's columns appear where PyTorch is installed. Every result is compared with a float64
reference before it is timed. `--json FILE` writes the rows as well.
"""

import argparse

from weakunet.bench import check as bench_check
from weakunet.bench import compile as bench_compile
from weakunet.bench import counts as bench_counts
from weakunet.bench.counts import DEVICES
from weakunet.gpu import backend
from weakunet.util.cli import command, write_json

COLUMNS = [
    ("name", "{}"),
    ("size", "{}"),
    ("threads", "{}"),
    ("ours_s", "{:.4f}"),
    ("torch_default_s", "{:.4f}"),
    ("torch_channels_last_s", "{:.4f}"),
    ("ratio", "{:.2f}"),
    ("gflops", "{:.0f}"),
    ("sgemm_share", "{:.2f}"),
    ("ours_mb", "{:.0f}"),
    ("torch_mb", "{:.0f}"),
    ("memory_ratio", "{:.2f}"),
]


def print_table(rows, columns=COLUMNS):
    """Print `rows` (dicts) as a Markdown table; a value that is missing or None shows as '-'."""
    cells = [[title for title, _ in columns], ["-"] * len(columns)]
    for row in rows:
        values = [(row.get(title), form) for title, form in columns]
        cells.append(["-" if value is None else form.format(value) for value, form in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("| " + " | ".join(padded) + " |")


@command
def main(argv=None):
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m weakunet.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cpu", action="store_true", help="numpy on the CPU")
    what.add_argument(
        "--compile", action="store_true", help="compile all kernels: registers, spills"
    )
    what.add_argument("--check", action="store_true", help="does the GPU compute what numpy does?")
    what.add_argument("--zeros", action="store_true", help="how much of the gradient is zero")
    parser.add_argument("--graph", action="store_true", help="a GPU's steps as CUDA graphs, too")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument(
        "--floor", choices=DEVICES, default="h200", help="whose floor, without a GPU"
    )
    args = parser.parse_args(argv)
    if min(args.threads) < 1 or args.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    rows = _rows(args)
    if args.json:
        write_json(args.json, rows)


def _rows(args):
    if args.check:
        return bench_check.check()
    if args.compile:
        return bench_compile.compile_all()
    if args.zeros:
        from weakunet.bench import zeros as bench_zeros

        rows = bench_zeros.measure(args.only)
        print_table(rows, bench_zeros.COLUMNS)
        return rows
    if args.cpu:
        from weakunet.bench import cpu as bench_cpu

        rows = bench_cpu.measure(args.threads, args.rounds, args.only)
        print_table(rows)
        return rows
    from weakunet.bench import gpu as bench_gpu

    if backend.pick_device() == "cuda":
        rows = bench_gpu.measure(args.rounds, args.only, args.graph)
        whole = [row for row in rows if ":" in row["name"]]
        print_table([row for row in rows if row not in whole], bench_gpu.COLUMNS)
        for columns in (bench_gpu.STEP_COLUMNS, bench_gpu.MORE_COLUMNS):
            print_table(whole, columns)
    else:
        rows = bench_counts.counted(args.floor, args.only)
        print_table(rows, bench_counts.COLUMNS)
    return rows


if __name__ == "__main__":
    main()
