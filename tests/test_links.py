"Every link and picture of a notebook leads somewhere, and every notebook opens with its kernel."
import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(x.startswith('.') for x in p.parts[-3:]))
LINK = re.compile(r'\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)|(?:src|href|poster)="([^"]+)"')


@cache
def read(path): return json.loads(path.read_text(encoding='utf-8'))


def texts(nb):
    "What is shown as Markdown or HTML: cells, and outputs of cells"
    for cell in nb['cells']:
        if cell['cell_type'] == 'markdown': yield ''.join(cell['source'])
        for out in cell.get('outputs', []):
            for kind in ('text/markdown', 'text/html'):
                if kind in out.get('data', {}): yield ''.join(out['data'][kind])


def links(nb):
    "Targets of [text](target) and of attributes of HTML; what stands in code is none"
    plain = (re.sub(r'```.*?```|`[^`\n]*`', '``', text, flags=re.S) for text in texts(nb))
    return [m[1] or m[2] for text in plain for m in LINK.finditer(text)]


def anchors(path):
    "The anchors that JupyterLab gives to the headings of a notebook"
    heads = [h for c in read(path)['cells'] if c['cell_type'] == 'markdown'
             for h in re.findall(r'^#+ +(.*?)\s*$', re.sub(r'```.*?```', '', ''.join(c['source']), flags=re.S), re.M)]
    return {re.sub(r'\[([^]]*)\]\([^)]*\)|`', r'\1', h).replace(' ', '-') for h in heads}


def broken(target, path):
    "What is wrong with a link that stands in the notebook at `path`, or None"
    if re.match(r'[a-z][a-z+.-]*:|//', target): return None
    file, _, anchor = unquote(target).partition('#')
    place = (path.parent / file).resolve() if file else path
    if ROOT not in place.parents: return 'leads out of the project'
    if not place.exists(): return 'is not there'
    if anchor and place.suffix == '.ipynb' and anchor not in anchors(place): return 'has no such heading'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / 'nbs').as_posix())
def test_links_lead_somewhere(path):
    assert not [f'{x} {wrong}' for x in links(read(path)) if (wrong := broken(x, path))]


def test_it_would_be_seen():
    path = NOTEBOOKS[0]
    text = ('[a](../no.ipynb) [`b`](../no.py) ![c](no.png) [![d](no2.png)](https://x.org) <img src="no.gif"> '
            f'`[e](in.code)` [f]({path.name}#No) [g]({path.name}) [h](/etc/hosts)')
    nb = dict(cells=[dict(cell_type='markdown', source=[text])])
    wrong = [x for x in links(nb) if broken(x, path)]
    assert wrong == ['../no.ipynb', '../no.py', 'no.png', 'no2.png', 'no.gif', f'{path.name}#No', '/etc/hosts']


def test_notebooks_show_pictures_and_open_with_their_kernel():
    assert sum('data/results' in x for p in NOTEBOOKS for x in links(read(p))) > 10
    kernels = {p.name: read(p)['metadata'].get('kernelspec', {}) for p in NOTEBOOKS}
    assert not [n for n, k in kernels.items() if (k.get('name'), k.get('language')) != ('python3', 'python')]
