"""Write kernels.html: for each layer the equation, and the numpy beside the CUDA lines.

    python tutorials/kernel_page.py

Everything on the page is cut out of the sources, weakunet/layers/*.py and *.cu, loss, optim and
augment, so that it says what the code does; run this again when they change (a test looks). The
page is one file that a browser opens from disk.
"""

import argparse
import ast
import html
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

from weakunet.util.cli import command, write_text  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[1] / "weakunet"
PAGE = Path(__file__).with_name("kernels.html")

# What stands beside what, in reading order. Section: a .py file, whose docstring holds the
# equation. Row: functions of that file, or None for a text that stands alone; a .cu file; its
# kernels, or None for the whole text. Where there is no .cu file, the functions' lines for the GPU,
# which call other layers.
SECTIONS = {
    "layers/relu": [
        ("relu_forward", "layers/relu", "relu_forward"),
        ("relu_backward", "layers/relu", "relu_backward"),
    ],
    "layers/conv/conv3d": [
        ("_pad _window conv3d_forward", "layers/conv/naive", "conv3d_forward_naive"),
        (
            "conv3d_backward",
            "layers/conv/naive",
            "conv3d_backward_input_naive conv3d_backward_weight_naive conv3d_backward_bias_naive",
        ),
    ],
    "layers/maxpool3d": [
        ("maxpool3d_forward _halves", "layers/maxpool3d", "maxpool3d_forward"),
        ("maxpool3d_backward", "layers/maxpool3d", "maxpool3d_backward"),
    ],
    "layers/upsample3d": [
        ("upsample3d_forward", "layers/upsample3d", "upsample3d_forward"),
        ("upsample3d_backward", "layers/upsample3d", "upsample3d_backward"),
    ],
    "layers/concat": [
        ("concat_forward", "layers/concat", "concat_forward"),
        ("concat_backward", "layers/concat", "concat_backward"),
    ],
    "layers/conv/folded": [
        ("_fold upsample_conv3d_forward", None, None),
        ("upsample_conv3d_backward", None, None),
    ],
    "layers/globalpool3d": [
        ("globalmax_forward", "layers/globalpool3d", "globalmax_parts globalmax_forward"),
        ("globalmax_backward", "layers/globalpool3d", "globalmax_backward"),
        ("globalmean_forward", "layers/globalpool3d", "globalmean_parts globalmean_forward"),
        ("globalmean_backward", "layers/globalpool3d", "globalmean_backward"),
        ("localmax_forward", "layers/globalpool3d", "localmax_blocks"),
        ("localmax_backward", "layers/globalpool3d", "localmax_backward"),
    ],
    "layers/linear": [
        ("linear_forward", "layers/linear", "linear_forward"),
        ("linear_backward", "layers/linear", "linear_backward"),
    ],
    "layers/loss": [
        ("mse_forward", "layers/loss", "mse_forward"),
        ("mse_backward", "layers/loss", "mse_backward"),
    ],
    "layers/optim": [("adadelta_update", "layers/optim", "adadelta_update")],
    "training/augment": [("warp _flip_and_shift", "training/augment", None)],
    "layers/conv/cpu": [
        ("forward sweep _gather _overlap _multiply", "layers/conv/tiled", None),
        ("backward _correlate", None, None),
    ],
    "layers/conv/tensor": [
        (None, "layers/conv/tensor_core.cuh", None),
        (None, "layers/conv/tensor", None),
        (None, "layers/conv/folded", None),
        (None, "layers/conv/tensor_bf16", None),
    ],
}
PYTHON = re.compile(
    r'(?P<comment>#[^\n]*|"""[\s\S]*?""")|(?P<string>"[^"\n]*")|(?P<keyword>\b(?:def|return|if|else|'
    r"elif|for|in|while|not|and|or|is|None|True|False|with|as|raise|lambda|from|import)\b)"
)
CUDA = re.compile(
    r'(?P<comment>//[^\n]*)|(?P<string>"[^"\n]*"|#\w+[^\n]*)|(?P<keyword>\b(?:extern|const|int|void|'
    r"real|double|bool|unsigned|char|long|if|else|for|return|continue|static|template|struct|"
    r"constexpr|typedef|true|false)\b)|(?P<cuda>\b__\w+__\b|\b__\w+|"
    r"\b(?:threadIdx|blockIdx|blockDim|gridDim)\b)"
)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 3rem; border-top: 2px solid #888; padding-top: 1rem; }
p, ul { max-width: 50rem; } nav a { margin-right: 1em; white-space: nowrap; }
pre { font: 12px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: 0;
      padding: .7rem; overflow-x: auto; background: #f6f6f4; border: 1px solid #ddd; }
pre.equation { background: #fff8e6; max-width: 60rem; margin: 1em 0; }
.row { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1rem;
       margin: 1rem 0 2rem; align-items: start; }
.side { min-width: 0; } .file { font-size: .85rem; color: #555; margin: 0 0 .2rem; }
.comment { color: #4a6a4a; } .string { color: #8a4b08; } .keyword { font-weight: 600; }
.cuda { color: #0b4f9c; font-weight: 600; }
@media screen and (min-width: 60rem) { /* a short text stays beside a long one */
  .row .side:first-child { position: sticky; top: .5rem; max-height: 98vh; overflow-y: auto; } }
@media (max-width: 60rem) { .row { grid-template-columns: minmax(0, 1fr); } }
@media print { pre { white-space: pre-wrap; } }
"""
INTRO = """
<p>Each layer of weakunet by its equation, by numpy and by CUDA. Both sides compute the same
numbers: the tests run the kernels' text on the right against the functions on the left.</p>
<ul>
<li>Batches are (N, C, D, H, W) with D, H, W along z, y, x; x runs fastest. dy is the gradient of
the loss in y.</li>
<li><code>real</code> is float or double; every kernel is compiled for both.</li>
<li>Over each kernel: what it computes, which thread owns what, the memory it moves, its work, and
why nothing races.</li>
</ul>
"""


def python_functions(text, names, gpu=False):
    """The source of functions, in the order of `names`: all but the lines for a GPU, or these."""
    lines, functions = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            handed_over = {
                number
                for part in node.body
                if isinstance(part, ast.If) and "backend.is_cuda" in ast.unparse(part.test)
                for number in range(part.lineno, part.end_lineno + 1)
            }
            numbers = range(node.lineno, node.end_lineno + 1)
            functions[node.name] = [lines[i - 1] for i in numbers if (i in handed_over) == gpu]
    return "\n\n\n".join("\n".join(functions[name]) for name in names if functions[name])


def cuda_kernels(text, names):
    """Kernels of a .cu text with the header over each, in the order of `names`."""
    kernels = {}
    for part in re.split(r"^(?=// computes  )", text, flags=re.M)[1:]:
        name = re.search(r"__global__ void(?: __launch_bounds__\(\d+\))?\s+(\w+)", part).group(1)
        kernels[name] = part[: part.index("\n}\n") + 2]
    return "\n\n".join(kernels[name] for name in names)


def highlight(text, pattern):
    """HTML of a program's text: comments, strings and keywords in spans, all else escaped."""
    parts, end = [], 0
    for match in pattern.finditer(text):
        parts.append(html.escape(text[end : match.start()], quote=False))
        word = html.escape(match.group(), quote=False)
        parts.append(f'<span class="{match.lastgroup}">{word}</span>')
        end = match.end()
    return "".join(parts) + html.escape(text[end:], quote=False)


def explanation(docstring):
    """HTML of a module's docstring: paragraphs, and equations (indented, or `name[...] = ...`)."""
    parts = []
    for paragraph in html.escape(docstring, quote=False).split("\n\n"):
        equation, text = "", re.sub(r"`([^`]+)`", r"<code>\1</code>", paragraph)
        if re.search(r"^ ", paragraph, re.M):
            equation, text = textwrap.dedent(paragraph), ""
        elif re.match(r"\w+\[.*\] = ", paragraph):
            equation, _, text = paragraph.partition("\n")
        parts.append(f'<pre class="equation">{equation}</pre>' if equation else "")
        parts.append(f"<p>{text}</p>" if text else "")
    return "\n".join(part for part in parts if part)


def _side(path, code):
    return f'<div class="side"><p class="file">weakunet/{path}</p><pre>{code}</pre></div>'


def page():
    """The whole page as text."""
    links, body = [], []
    for section, rows in SECTIONS.items():
        text = (PACKAGE / f"{section}.py").read_text(encoding="utf-8")
        name = section.rpartition("/")[2]
        docstring = ast.get_docstring(ast.parse(text))
        links.append(f'<a href="#{name}">{name}</a>')
        body.append(f'<h2 id="{name}">{name}</h2>\n{explanation(docstring)}')
        for functions, cu, kernels in rows:
            left = ""
            if functions:
                numpy_lines = python_functions(text, functions.split())
                left = _side(f"{section}.py", highlight(numpy_lines, PYTHON))
            if cu is None:
                gpu_lines = textwrap.dedent(python_functions(text, functions.split(), gpu=True))
                right = _side(f"{section}.py, on a GPU", highlight(gpu_lines, PYTHON))
            else:
                cu = cu if "." in cu else f"{cu}.cu"
                cuda = (PACKAGE / cu).read_text(encoding="utf-8")
                cuda = cuda_kernels(cuda, kernels.split()) if kernels else cuda.strip("\n")
                right = _side(cu, highlight(cuda, CUDA))
            body.append(f'<div class="{"row" if left else "alone"}">\n{left}\n{right}\n</div>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>weakunet: the layers, numpy beside CUDA</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>The layers, numpy beside CUDA</h1>{INTRO}<nav>{' '.join(links)}</nav>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


@command
def main(argv=None):
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="default: tutorials/kernels.html")
    args = parser.parse_args(argv)
    write_text(args.out, page())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
