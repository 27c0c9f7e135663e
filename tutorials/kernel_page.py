"""Write kernels.html: each layer's equation, and its numpy beside its CUDA lines.

    python tutorials/kernel_page.py [--out kernels.html]

Everything on the page is taken from the sources, so that it says what the code does. The page is
one file that a browser opens from disk.
"""

import argparse
import ast
import html
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from a clone, uninstalled

from weakunet.util.cli import command, write_text  # noqa: E402

PACKAGE = Path(__file__).resolve().parents[1] / "weakunet"
# In reading order: a Python file, whose docstring holds the equation, and the CUDA texts beside it.
SECTIONS = {
    "layers/relu": ["relu.cu"],
    "layers/conv/conv3d": ["naive.cu"],
    "layers/maxpool3d": ["maxpool3d.cu"],
    "layers/upsample3d": ["upsample3d.cu"],
    "layers/concat": ["concat.cu"],
    "layers/globalpool3d": ["globalpool3d.cu"],
    "layers/linear": ["linear.cu"],
    "layers/loss": ["loss.cu"],
    "layers/optim": ["optim.cu"],
    "training/augment": ["augment.cu"],
    "layers/conv/folded": ["folded.cu"],
    "layers/conv/cpu": ["tiled.cu"],
    "layers/conv/packed": ["packed.cuh", "packed.cu"],
    "layers/conv/tensor": ["tensor_core.cuh", "tensor.cu", "parts.cu"],
}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem; } nav a { margin-right: 1em; }
h2 { margin-top: 3rem; border-top: 2px solid #888; padding-top: 1rem; } p { max-width: 50rem; }
pre { font: 12px/1.4 ui-monospace, Menlo, Consolas, monospace; margin: 0; padding: .7rem;
      white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; border: 1px solid #ddd; }
h2 + pre { background: #fff8e6; max-width: 60rem; }
.row { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1rem; }
@media (max-width: 60rem) { .row { grid-template-columns: minmax(0, 1fr); } }
"""
INTRO = """<p>numpy on the left, CUDA on the right; the tests compare them. Batches are
(N, C, D, H, W), along z, y, x; x runs fastest. dy is the gradient of the loss with respect to y.
<code>real</code> is float or double, <code>stored</code> what a plain or packed array holds. Above
each kernel: what it computes, which thread owns which output, the memory it moves, its work, and
why no two threads race.</p>"""


def numpy_lines(text):
    """The functions of a module without the lines that hand an array over to the GPU."""
    lines, parts = text.splitlines(), []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and not node.name.endswith("_cuda"):
            left_out = {
                number
                for part in node.body
                if isinstance(part, ast.If) and "is_cuda" in ast.unparse(part.test)
                for number in range(part.lineno, part.end_lineno + 1)
            }
            numbers = range(node.lineno, node.end_lineno + 1)
            parts.append("\n".join(lines[i - 1] for i in numbers if i not in left_out))
    return "\n\n\n".join(parts)


def page():
    """The whole page as text."""
    links, body = [], []
    for section, cuda in SECTIONS.items():
        path = PACKAGE / f"{section}.py"
        text, name = path.read_text(encoding="utf-8"), path.stem
        kernels = "\n".join((path.parent / file).read_text(encoding="utf-8") for file in cuda)
        links.append(f'<a href="#{name}">{name}</a>')
        texts = ast.get_docstring(ast.parse(text)), numpy_lines(text), kernels.strip("\n")
        about, left, right = (f"<pre>{html.escape(part, quote=False)}</pre>" for part in texts)
        body.append(f'<h2 id="{name}">{name}</h2>\n{about}')
        body.append(f'<div class="row">\n{left}\n{right}\n</div>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>weakunet: the layers, numpy beside CUDA</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>The layers, numpy beside CUDA</h1>{INTRO}\n<nav>{' '.join(links)}</nav>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


@command
def main(argv=None):
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("kernels.html"), help="default: here")
    args = parser.parse_args(argv)
    write_text(args.out, page())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
