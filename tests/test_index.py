"The index shows what its cells give today: nothing in its tables can fall behind the notebooks or data/results."
import importlib.util
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from execnb.nbio import read_nb
from nbdev.config import get_config
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / 'nbs/index.ipynb'
MEND = 'mend it with: make outputs NB=nbs/index.ipynb && make prepare'


def shown(outputs, kind): return [''.join(o['data'][kind]) for o in outputs if kind in o.get('data', {})]


@pytest.fixture(scope='module')
def nb(): return read_nb(INDEX)


def test_tables_in_step(nb):
    "Whatever text and tables the cells make now are those stored, and so those of README.md"
    spec = importlib.util.spec_from_file_location('store_outputs', ROOT / '.ci/store_outputs.py')
    spec.loader.exec_module(store := importlib.util.module_from_spec(spec))
    now = store.run(nb, INDEX, ROOT, set(get_config(path=ROOT).tst_flags.split()))
    was = {i: nb.cells[i].get('outputs', []) for i in now}
    old = [i for i in now if shown(now[i], 'text/markdown') != shown(was[i], 'text/markdown')]
    assert any(shown(o, 'text/markdown') for o in now.values())
    if old: pytest.fail(f'cells {old} of index.ipynb show something else now ({MEND})', pytrace=False)


def test_opens_with_generated_clips(nb):
    "The first picture moves, is small enough for a README, and its cell makes it with the pretrained run"
    cell = next(c for c in nb.cells if c.cell_type == 'code' and shown(c.get('outputs', []), 'image/gif'))
    data = b64decode(shown(cell.outputs, 'image/gif')[0])
    assert len(data) <= 400_000 and Image.open(BytesIO(data)).n_frames > 1
    assert re.search(r"open_run\('pretrained'\)", cell.source) and 'generate(' in cell.source
