"""python -m weakunet.bench: how fast each layer and the whole training step are, and beside what.

`--cpu` times numpy on the CPU; PyTorch's columns appear where PyTorch is installed. Every result is
compared with a float64 reference before it is timed. `--json FILE` writes the rows as well.
"""

import argparse

from weakunet.cli import command, write_json

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


def print_table(rows):
    """Print `rows` (dicts) as a Markdown table; a value that is missing or None shows as '-'."""
    cells = [[title for title, _ in COLUMNS], ["-"] * len(COLUMNS)]
    for row in rows:
        values = [(row.get(title), form) for title, form in COLUMNS]
        cells.append(["-" if value is None else form.format(value) for value, form in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    for line in cells:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("| " + " | ".join(padded) + " |")


@command
def main(argv=None):
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m weakunet.bench", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="numpy on the CPU")
    parser.add_argument("--json", metavar="FILE", help="also write the rows to FILE")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; medians are reported")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    args = parser.parse_args(argv)
    if not args.cpu:
        parser.error("say what to measure: --cpu")
    if min(args.threads) < 1 or args.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    from weakunet import bench_cpu

    rows = bench_cpu.measure(args.threads, args.rounds, args.only)
    print_table(rows)
    if args.json:
        write_json(args.json, rows)


if __name__ == "__main__":
    main()
