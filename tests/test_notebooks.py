"Every notebook as one test, under nbdev's own rules, each in a fresh process as a reader would open it."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

ROOT = Path(__file__).resolve().parent.parent
FLAGS = os.environ.get('NVS_FLAGS', '')  # for instance NVS_FLAGS=slow runs the slow cells too
NOTEBOOKS = sorted(nbglob(ROOT / 'nbs', as_path=True))
SKIPPED = 77

RUN = f'''
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
path, force = Path(sys.argv[1]), sys.argv[2].split()
cfg = get_config(path=path.parent)
ok, seconds = test_nb(path, skip_flags=cfg.tst_flags.split(), force_flags=force, basepath=cfg.config_path)
sys.exit(1 if not ok else {SKIPPED} if seconds == 0 else 0)
'''


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / 'nbs').with_suffix('').as_posix())
def test_notebook(path):
    done = subprocess.run([sys.executable, '-c', RUN, str(path), FLAGS], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == SKIPPED: pytest.skip('its front matter says skip_exec')
    if done.returncode: pytest.fail(f'{done.stdout[-2000:]}\n{done.stderr[-6000:]}', pytrace=False)


def test_flags_known():
    "Every flag on a cell is one that is known here: a misspelt one would let a slow cell run, or hide nothing"
    known = {'default_exp', 'export', 'exports', 'exporti', 'hide', 'hide_input', 'echo:', 'eval:', 'fig-alt:'}
    known |= set(get_config(path=ROOT).tst_flags.split())
    found = set()
    for path in NOTEBOOKS:
        flags = re.findall(r'"\s*#\s*\|\s*([\w-]+:?)', path.read_text(encoding='utf-8'))
        found |= {(path.name, flag) for flag in flags}
    assert not [f for f in sorted(found) if f[1] not in known]
