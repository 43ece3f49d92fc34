"The notebooks are the source: they are clean, the library is their export, and README.md their index."
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEND = 'mend it with: make prepare'


def files(top, pattern):
    "Contents by relative path of the files under `top` that match"
    return {p.relative_to(top).as_posix(): p.read_bytes() for p in sorted(top.rglob(pattern))
            if not any(part.startswith('.') for part in p.relative_to(top).parts)}


def differing(a, b): return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of the project, so that checking changes nothing here and works with uncommitted edits"
    top = tmp_path_factory.mktemp('sync') / 'project'
    ignore = shutil.ignore_patterns('.*', '__pycache__', 'runs', 'embedded')
    for name in ('nbs', 'nvs_nb'): shutil.copytree(ROOT / name, top / name, ignore=ignore)
    for name in ('settings.ini', 'setup.py', 'README.md'): shutil.copy(ROOT / name, top)
    return top


def nbdev(command, cwd):
    code = f'from nbdev.{command[0]} import {command[1]} as f; f.__wrapped__()'
    env = {**os.environ, 'JUPYTER_DATA_DIR': str(cwd.parent / 'jupyter'), 'PYTHONPATH': ''}
    done = subprocess.run([sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode: pytest.fail(f'{command[1]} failed:\n{done.stderr[-3000:]}', pytrace=False)


def test_notebooks_clean(copy):
    before = files(copy / 'nbs', '*.ipynb')
    nbdev(('clean', 'nbdev_clean'), copy)
    dirty = differing(before, files(copy / 'nbs', '*.ipynb'))
    if dirty: pytest.fail(f'notebooks that nbdev_clean would change: {", ".join(dirty)} ({MEND})', pytrace=False)


def test_library_in_step(copy):
    before = files(copy / 'nvs_nb', '*.py')
    for path in (copy / 'nvs_nb').rglob('*.py'):
        if path.name != '__init__.py': path.unlink()  # a module that no notebook exports must not survive
    nbdev(('doclinks', 'nbdev_export'), copy)
    after = files(copy / 'nvs_nb', '*.py')
    stray = sorted(before.keys() - after.keys())
    if stray: pytest.fail(f'no notebook exports these, remove them: {", ".join(stray)}', pytrace=False)
    other = differing(before, after)
    if other: pytest.fail(f'not what the notebooks export: {", ".join(other)} ({MEND})', pytrace=False)


def test_readme_in_step():
    done = subprocess.run([sys.executable, '.ci/readme.py', '--check'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode: pytest.fail(done.stderr[-3000:], pytrace=False)


def test_readme_links():
    "What README.md points to is there"
    text = re.sub(r'```.*?```', '', (ROOT / 'README.md').read_text(encoding='utf-8'), flags=re.S)
    links = re.findall(r'\]\(([^)\s#]+)', text) + re.findall(r'(?:src|href)="([^"#]+)', text)
    assert not [x for x in links if not re.match(r'[a-z]+:', x) and not (ROOT / x).exists()]
