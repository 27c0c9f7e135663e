"""python -m weakunet.bench: how fast each layer and the whole training step are, beside PyTorch.

    python -m weakunet.bench            on the GPU; without one, FLOPs, bytes and floors
    python -m weakunet.bench --cpu      numpy on the CPU
    python -m weakunet.bench --compile  registers and spills of every kernel; needs no GPU
    python -m weakunet.bench --check    does the GPU compute what numpy does?

PyTorch's columns appear where PyTorch is installed. Every result is compared with a float64
reference before it is timed.
"""

from weakunet.bench import check, compile, counts
from weakunet.gpu import backend
from weakunet.util.cli import command, new_parser, write_json

FORMS = {"s": ".6f", "mb": ".0f", "gflops": ".0f", "flop": ".3g", "bytes": ".3g"}  # of columns


@command
def main(argv=None):
    """Run the benchmark and print its table."""
    parser = new_parser(__doc__.partition("\n\n")[2], "python -m weakunet.bench")
    add, what = parser.add_argument, parser.add_mutually_exclusive_group()
    what.add_argument("--cpu", action="store_true", help="numpy on the CPU")
    what.add_argument("--compile", action="store_true", help="registers and spills of all kernels")
    what.add_argument("--check", action="store_true", help="does the GPU compute what numpy does?")
    add("--json", metavar="FILE", help="also write the rows to FILE")
    about = "with --cpu: numbers of threads to time"
    add("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help=about)
    add("--rounds", type=int, default=7, help="number of rounds; medians are reported")
    add("--only", default="", metavar="TEXT", help="only rows whose name contains TEXT")
    about = "without a GPU: the device whose floors to print"
    add("--floor", choices=counts.DEVICES, default="h200", help=about)
    args = parser.parse_args(argv)
    if min(args.threads) < 1 or args.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    rows = _rows(args)
    if args.json:
        write_json(args.json, rows)


def _rows(args):
    if args.check:
        return check.check()
    if args.compile:
        return compile.compile_all()
    if args.cpu:
        from weakunet.bench import cpu

        rows = cpu.measure(args.threads, args.rounds, args.only)
        print_table(rows, cpu.COLUMNS)
    elif backend.pick_device() == "cuda":
        from weakunet.bench import gpu

        rows = gpu.measure(args.rounds, args.only)
        print_table([row for row in rows if ":" not in row["name"]], gpu.COLUMNS)
        print_table([row for row in rows if ":" in row["name"]], gpu.STEP_COLUMNS)
    else:
        rows = counts.counted(args.floor, args.only)
        print_table(rows, counts.COLUMNS)
    return rows


def print_table(rows, columns):
    """Print `rows` (dicts) as a Markdown table; a value that is missing or None shows as '-'."""
    lines = [columns, ["-"] * len(columns)]
    lines += [[_text(column, row.get(column)) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("| " + " | ".join(map(str.ljust, line, widths)) + " |")


def _text(column, value):
    form = FORMS.get(column.rpartition("_")[2], ".2f" if isinstance(value, float) else "")
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
