"""A command over the scans of a cohort: in several processes, in parts, resumed after a stop.

The jobs of a cluster share a cohort and one output folder:

    COMMAND --part K/N             every N-th scan, from the K-th on (K = 1 ... N)
    COMMAND --subjects s001 s002   only these scans
    COMMAND                        all scans

A part writes its own table, TABLE.part-K-of-N.csv, so that no table is ever torn. Where there are
such tables, the command without --part only joins: it writes the table of all scans that are done
and names those that are missing.
"""

import argparse
import functools
import sys
from pathlib import Path

from weakunet.util import resume
from weakunet.util.cli import InputError, clear_leftovers, progress
from weakunet.util.processes import map_processes


def add_arguments(parser, jobs):
    """Give a command the options of `run_command`: --out, --jobs, and the part of the scans."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--jobs", type=int, default=jobs, help="scans in memory at once")
    group = parser.add_mutually_exclusive_group()
    about = "only every N-th scan, from the K-th; the same command without it joins the parts"
    group.add_argument("--part", type=_part, metavar="K/N", help=about)
    about = "only the scans of these subjects"
    group.add_argument("--subjects", nargs="+", metavar="NAME", help=about)


def _part(text):
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, as in 2/8")
    return int(number), int(of)


def choose_part(args, scans):
    """The scans that the arguments ask for. Raises InputError for a name that no scan has."""
    if args.part:
        number, of = args.part
        return scans[number - 1 :: of]
    if args.subjects:
        unknown = set(args.subjects) - {scan.subject for scan in scans}
        if unknown:
            raise InputError(f"--subjects {min(unknown)}: no such scan; check the table")
        return [scan for scan in scans if scan.subject in args.subjects]
    return scans


def part_table(args, path):
    """Where a command with these arguments writes its table `path`."""
    if args.part:
        return path.with_name("{}.part-{}-of-{}{}".format(path.stem, *args.part, path.suffix))
    if args.subjects:
        more = f"-and-{len(args.subjects) - 1}" if len(args.subjects) > 1 else ""
        return path.with_name(f"{path.stem}.subject-{args.subjects[0]}{more}{path.suffix}")
    return path


def clear_parts(args, path):
    """Remove what the parts left once the table of all scans is written."""
    if part_table(args, path) == path:
        clear_leftovers(path.parent)
        for kind in ("part", "subject"):
            for table in path.parent.glob(f"{path.stem}.{kind}-*{path.suffix}"):
                table.unlink(missing_ok=True)


def run_command(args, settings, files_of, work, how, what, table, write, mixed=False):
    """A command that makes files for each scan and one table of all, and goes on after a stop.

    Parameters
    ----------
    args : has `scans`, of which it chooses its part, and what `add_arguments` adds
    settings, mixed : as for `resume.begin`
    files_of : (scan, out, **how) -> settings of its own, source files, {kind: path to write}
    work : (scan, {kind: path}, **how) -> a value to note (JSON) or None; writes those files. A
        function of a module, which `args.jobs` processes call
    what : what the progress bar says
    table : the table's name
    write : (path, [(scan, {kind: path}, value), ...]), writes the table of what did not fail

    Raises InputError, at the end, where scans failed; of several, each is named on stderr.
    """
    out, table, scans = args.out, args.out / table, choose_part(args, args.scans)
    of_part = part_table(args, table)
    parts_are_there = any(out.glob(f"{table.stem}.part-*-of-*"))
    shared = of_part != table or parts_are_there  # others may be writing, too
    resume.begin(out, settings, mixed=mixed, shared=shared)
    tasks = [(scan, *files_of(scan, out, **how)) for scan in scans]
    results = [
        resume.noted(out, scan.subject, own, sources, files.values())
        for scan, own, sources, files in tasks
    ]
    todo = [task for task, result in zip(tasks, results, strict=True) if result is None]
    if 0 < len(todo) < len(scans):
        print(f"going on: {len(scans) - len(todo)} of {len(scans)} scans are done", file=sys.stderr)
    new = map_processes(functools.partial(_make, work, how, out), todo, args.jobs)
    if parts_are_there and of_part == table:  # only join them
        remedy = "run its part again, or --subjects"
        new = (InputError(f"{s.subject} is missing; {remedy} {s.subject}") for s, *_ in todo)
    for i, _ in enumerate(progress(scans, what)):
        results[i] = next(new) if results[i] is None else results[i]
    failed = [result for result in results if isinstance(result, InputError)]
    if len(results) > 1:
        for error in failed:
            print(f"failed: {error}", file=sys.stderr)
    if len(failed) < len(results):
        pairs = zip(tasks, results, strict=True)
        done = [(t[0], t[3], value) for t, value in pairs if not isinstance(value, InputError)]
        write(of_part, done)
    elif len(failed) == 1:
        raise failed[0]
    if failed:
        raise InputError(
            f"{out}: {len(failed)} of {len(results)} scans failed, named above "
            "and left out; fix them and run the same command again"
        )
    clear_parts(args, table)


def _make(work, how, out, task):
    """Make a scan's files and note what they are made from; an InputError where that failed."""
    scan, own, sources, files = task
    try:
        inputs = resume.inputs(own, sources)
        value = work(scan, files, **how)
        resume.note(out, scan.subject, inputs, True if value is None else value)
        return value
    except InputError as error:
        return error
    except MemoryError:
        return InputError(f"{scan.image}: not enough memory; use --jobs 1 or crop the scan")
