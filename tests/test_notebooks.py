"Every notebook as one test, under nbdev's own rules, each in a fresh process as a reader would open it, and once."
import importlib.util
import multiprocessing
import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from conftest import SERVER
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(nbglob(ROOT / 'nbs', as_path=True))
SLOW = '01_one_page 09_presets 11_ablations 12_exchange 13_interpolation baselines_more'
SLOW = {f'solutions/{name}' for name in SLOW.split()}
INDEX = ROOT / 'nbs/index.ipynb'
MEND = 'mend it with: make outputs NB=nbs/index.ipynb && make prepare'


def run(path):
    """Run a notebook as `.ci/store_outputs.py` does. The index must show what its cells give today, so that nothing in
    its tables, and those of README.md, falls behind the notebooks or data/results."""
    multiprocessing.get_context = lambda method=None: SERVER  # trainings in processes of their own start at once
    spec = importlib.util.spec_from_file_location('store_outputs', ROOT / '.ci/store_outputs.py')
    spec.loader.exec_module(store := importlib.util.module_from_spec(spec))
    sys.path.insert(0, str(ROOT))
    nb = read_nb(path)
    now = store.run(nb, path, ROOT, set(get_config(path=ROOT).tst_flags.split()))
    if path != INDEX: return
    old = [i for i in now if shown(now[i], 'text/markdown') != shown(nb.cells[i].get('outputs', []), 'text/markdown')]
    if not any(shown(o, 'text/markdown') for o in now.values()): sys.exit('no tables')
    if old: sys.exit(f'cells {old} of index.ipynb show something else now ({MEND})')


def shown(outputs, kind): return [''.join(o['data'][kind]) for o in outputs if kind in o.get('data', {})]


def name_of(path): return path.relative_to(ROOT / 'nbs').with_suffix('').as_posix()


@pytest.mark.parametrize('path', [  # solutions that train for a quarter of a minute and more wait for `make test-all`
    pytest.param(p, id=name_of(p), marks=[pytest.mark.slow] * (name_of(p) in SLOW)) for p in NOTEBOOKS])
def test_notebook(path, fork):
    done = fork(run, path).result()
    if done.code: pytest.fail(f'{done.out[-2000:]}\n{done.err[-6000:]}', pytrace=False)


def test_flags_known():
    "Every flag on a cell is one that is known here: a misspelt one would let a slow cell run, or hide nothing"
    known = {'default_exp', 'export', 'exports', 'exporti', 'hide', 'hide_input', 'echo:', 'eval:', 'fig-alt:'}
    known |= set(get_config(path=ROOT).tst_flags.split())
    found = set()
    for path in NOTEBOOKS:
        flags = re.findall(r'"\s*#\s*\|\s*([\w-]+:?)', path.read_text(encoding='utf-8'))
        found |= {(path.name, flag) for flag in flags}
    assert not [f for f in sorted(found) if f[1] not in known]


def test_index_opens_with_generated_clips():
    "The first picture moves, is small enough for a README, and its cell makes it with the pretrained run"
    cells = [c for c in read_nb(INDEX).cells if c.cell_type == 'code']
    cell = next(c for c in cells if shown(c.get('outputs', []), 'image/gif'))
    data = b64decode(shown(cell.outputs, 'image/gif')[0])
    assert len(data) <= 400_000 and Image.open(BytesIO(data)).n_frames > 1
    assert re.search(r"open_run\('pretrained'\)", cell.source) and 'generate(' in cell.source
