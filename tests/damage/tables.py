"""Damaged CSV tables: cells, columns, lines, quotes, separators, encodings, bytes."""

from damage import ANY, BOMB, pick

NUMBERS = "nan inf -inf 1e999 -1 -0 3.5 1_0 ٣ 0x10 1e400000 NULL #REF! =1+1".split()
NAMES = ["", " ", "../x", "a/b", ".", "a\nb", "a\rb", "a\0b", "a\x85b", "\u2028", "\ufeff", "😀"]
MARKS = ['"', '""', '"a', "'", ",", ";", "\t"]
LONG = ["a" * 1000, "9" * 5000, "1" + "0" * 400, "é" * 300, "x" * 200_000]
ODD_CELLS = [*NUMBERS, *NAMES, *MARKS, *LONG]
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp037", "utf-16-le", "utf-7")


def odd_cell(lines, rng):
    """Replace a cell."""
    line = pick(rng, lines)
    line[rng.integers(len(line))] = pick(rng, ODD_CELLS)


def missing_column(lines, rng):
    """Take a column out of every line, or out of one."""
    place = rng.integers(min(map(len, lines)))
    for line in lines if rng.random() < 0.5 else [pick(rng, lines)]:
        if len(line) > 1:
            del line[place]


def twice(lines, rng):
    """Repeat a line."""
    lines.append(list(pick(rng, lines)))


def mixed(lines, rng):
    """Shuffle the lines, the header among them."""
    rng.shuffle(lines)


def longer(lines, rng):
    """Add up to a hundred thousand lines."""
    line = pick(rng, ([""], ["x"], lines[-1]))
    most = BOMB // 64 // (1 + sum(map(len, line)) + len(line))
    lines += [list(line) for _ in range(rng.integers(1, 2 + most))]


def wider(lines, rng):
    """Add up to a hundred thousand cells to a line."""
    many = int(rng.integers(1, 10 ** rng.integers(1, 6)))
    line = pick(rng, (lines[0], lines[0], lines[-1]))
    line += [str(i) for i in range(many)] if rng.random() < 0.5 else [""] * many


def damaged(header, rows, rng):
    """See the package; of the table `header` and `rows`."""
    lines = [line.split(",") for line in (header, *rows)]
    done = []
    for _ in range(rng.integers(1, 3)):
        change = pick(rng, (odd_cell,) * 6 + (missing_column, twice, mixed, longer, wider))
        change(lines, rng)
        done.append(change.__name__)
    quote, end, joint = "{}", "\n", ","
    if rng.random() < 0.5:
        quote = pick(rng, ("{}", '"{}"', "'{}'", '"{}', ' "{}"'))
        end = pick(rng, ("\n", "\r\n", "\r", "\n\n", "\x85", "\0\n"))
        joint = pick(rng, (",", ",", ";", "\t", ", ", ",,"))
    text = end.join(joint.join(quote.format(cell) for cell in line) for line in lines)
    encoding = pick(rng, ENCODINGS) if rng.random() < 0.15 else "utf-8"
    content = text.encode(encoding, "replace")
    done.append(encoding)
    if rng.random() < 0.3 and content:
        change = pick(rng, ANY)
        content = change(content, rng)
        done.append(change.__name__)
    if rng.random() < 0.02:
        content *= 1 + 2**23 // (1 + len(content))
        done.append("many times")
    return ".csv", content, ", ".join(done)


def cohort(rng):
    """A damaged cohort table."""
    header = "subject,image,count,roi,split,centres,slice_z_mm"
    rows = ("s1,a.nii,3,r.nii,train,c.csv,4.5", "s2,b.nii,0,,val,,-3", "s3,c.nii,,,test,,0")
    return damaged(header, rows, rng)


def centres(rng):
    """A damaged list of lesion centres."""
    return damaged("x_mm,y_mm,z_mm", ("1,2,3", "-4.5,6e1,7", "0,0,0"), rng)


def predictions(rng):
    """A damaged predictions.csv."""
    rows = ("s1,3.25,3,0.5", "s2,-0.125,0,inf", "s3,7,7,0.25")
    return damaged("subject,count_predicted,n_detected,threshold", rows, rng)
