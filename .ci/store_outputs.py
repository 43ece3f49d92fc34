"""Run notebooks under nbdev's own skip rules and store what their cells show.

    python .ci/store_outputs.py nbs/library/viz.ipynb ...

Skipped cells (`#| eval: false`, the flags of `tst_flags`, `nbdev_export` calls) keep the outputs they had.
A failing cell, or a notebook edited meanwhile, leaves the file as it was and gives exit code 1.
"""
import os
import subprocess
import sys
from pathlib import Path

from execnb.nbio import nb2str, read_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.process import extract_directives

WIDGET = 'application/vnd.jupyter.widget-view+json'
CLEAR = '\x1b[2K\r'  # what clear_output prints where there is no notebook


def skipped(cell, flags):
    "The rule of `nbdev_test`: cells that are never run, or not by default"
    if cell.cell_type != 'code' or 'nbdev_export(' in cell.source: return True
    directives = extract_directives(cell, remove=False)
    return directives.get('eval:', [''])[0].lower() == 'false' or bool(flags & directives.keys())


def lasting(output):
    "Whether an output is worth keeping: not stderr (progress bars, warnings with paths), not a live widget"
    if output['output_type'] == 'stream':
        return output['name'] != 'stderr' and ''.join(output['text']).replace(CLEAR, '') != ''
    return WIDGET not in output.get('data', {})


def run(nb, path, root, flags):
    "Run the cells of `nb` that are not skipped; returns the outputs by cell index, or raises what the cell raised"
    shell, outputs = CaptureShell(path, mpl_format='png'), {}
    with working_directory(path.parent):
        for i, cell in enumerate(nb.cells):
            if skipped(cell, flags): continue
            shell._cell_idx = i + 1
            outs = shell.run(cell.source)
            if shell.exc:
                sys.stderr.write(shell.prettytb(fname=path.relative_to(root)) + '\n')
                raise SystemExit(1)
            outputs[i] = [o for o in outs if lasting(o)]
    return outputs


def store(path):
    "Run the notebook at `path` and write its outputs into the file"
    path = Path(path).resolve()
    cfg = get_config(path=path.parent)
    root = Path(cfg.config_path)
    sys.path.insert(0, str(root))
    os.environ['IN_TEST'] = '1'
    before = path.read_bytes()
    nb = read_nb(path)
    outputs = run(nb, path, root, set(cfg.tst_flags.split()))
    for i, outs in outputs.items(): nb.cells[i].outputs = outs
    nb.metadata.pop('widgets', None)
    if path.read_bytes() != before: raise SystemExit(f'{path.name} was edited while it ran: nothing stored, run again')
    tmp = path.with_name(f'.{path.stem}.tmp')
    tmp.write_text(nb2str(nb), encoding='utf-8')
    os.replace(tmp, path)
    with working_directory(root): nbdev_clean.__wrapped__(str(path))
    print(f'{path.name}: {len(outputs)} cells run, {path.stat().st_size / 1024:.0f} KB')


def main(paths):
    if not paths: raise SystemExit(__doc__)
    if len(paths) == 1: return store(paths[0])
    # one fresh process each, so that no notebook leans on another's state
    codes = [subprocess.run([sys.executable, __file__, p]).returncode for p in paths]
    raise SystemExit(max(codes))


if __name__ == '__main__': main(sys.argv[1:])
