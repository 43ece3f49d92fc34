"The package as others get it: what it imports, how it is cut, and what travels in the wheel."
import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT / 'nvs_nb'
MODULES = {'.'.join(p.relative_to(LIB).with_suffix('').parts): p for p in sorted(LIB.rglob('*.py')) if p.name[0] != '_'}
# in reading order, which is import order; the baselines are read before `12_speed`; solutions (90...) export nothing
NOTEBOOKS = sorted((p for p in (ROOT / 'nbs').rglob('*.ipynb')
                    if p.name != 'index.ipynb' and p.name[0] != '9' and p.parent.name[0] != '.'),
                   key=lambda p: ('11z' if p.parent.name == 'baselines' else '') + p.stem)


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


def module_of(path):
    "The module that a notebook must export: its own name without the number"
    parts = path.relative_to(ROOT / 'nbs').with_suffix('').parts
    return '.'.join([*parts[:-1], re.sub(r'^\d+[a-z]?_', '', parts[-1])])


def code_cells(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_module_named_after_notebook(path):
    exps = [m for src in code_cells(path) for m in re.findall(r'^#\s*\|\s*default_exp\s+(\S+)', src, re.M)]
    assert exps == [module_of(path)]


@pytest.mark.parametrize('name', MODULES)
def test_module_length(name):
    lines = len(MODULES[name].read_text(encoding='utf-8').splitlines())
    assert lines <= 320, f'{name} has {lines} lines: too long to be read in one go, split its notebook'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_follow_reading_order(path):
    "What a notebook exports leans only on notebooks read before it"
    module, earlier = module_of(path), [module_of(p) for p in NOTEBOOKS[:NOTEBOOKS.index(path)]]
    package, wanted = ['nvs_nb', *module.split('.')][:-1], set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): wanted |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            base = '.'.join([*base, *([node.module] if node.module else [])])
            wanted |= {f'{base}.{a.name}' for a in node.names} if base == 'nvs_nb' else {base}
    own = {w.removeprefix('nvs_nb.') for w in wanted if w.startswith('nvs_nb.')} & set(MODULES)
    assert own <= set(earlier), f'{path.name} imports {sorted(own - set(earlier))}, which the reader has not met yet'


BLOCKED = 'nbdev fastcore execnb ghapi IPython ipykernel ipywidgets jupyterlab nbconvert pytest torchvision'
BLOCK = f'''
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {BLOCKED.split()}: raise ModuleNotFoundError(f'blocked: {{name}}', name=name)
sys.meta_path.insert(0, Refuse())
'''


def test_library_needs_no_developer_package():
    code = BLOCK + f'import importlib\nfor m in {list(MODULES)}: importlib.import_module("nvs_nb." + m)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_command_needs_no_developer_package():
    code = BLOCK + 'from nvs_nb.cli import main\nsys.argv = ["nvs", "--help"]\nmain()'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and 'demo' in done.stdout, done.stdout[-1000:] + done.stderr[-3000:]


def test_imports_are_required():
    "Every outside package that a module imports at its top is among the requirements"
    names = {'scikit-image': 'skimage', 'pillow': 'PIL'}
    required = {names.get(n, n) for n in re.findall(r'(?:^|\s)([A-Za-z][\w-]*)', settings()['requirements'])}
    found = set()
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            if isinstance(node, ast.Import): found |= {(name, a.name.partition('.')[0]) for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: found.add((name, node.module.partition('.')[0]))
    assert not sorted(f for f in found if f[1] not in required | sys.stdlib_module_names | {'nvs_nb'})


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "A wheel built from a source archive built from a copy of the project, as a release is"
    top = tmp_path_factory.mktemp('build')
    ignore = shutil.ignore_patterns('__pycache__', '*.egg-info')
    shutil.copytree(LIB, top / 'src/nvs_nb', ignore=ignore)
    for name in ('setup.py', 'settings.ini', 'README.md', 'LICENSE', 'MANIFEST.in', 'constraints.txt'):
        shutil.copy(ROOT / name, top / 'src')
    sdist = 'import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])'
    pip = ['-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(top)]

    def python(*args):
        done = subprocess.run([sys.executable, *args], cwd=top / 'src', capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]

    python('-c', sdist, str(top))
    python(*pip, str(next(top.glob('*.tar.gz'))))
    return zipfile.ZipFile(next(top.glob('*.whl')))


def test_wheel_holds_everything(wheel):
    "Every module and every embedded file, byte for byte; nothing else of the project"
    want = {p.relative_to(ROOT).as_posix(): p for p in LIB.rglob('*') if p.is_file() and p.suffix != '.pyc'}
    have = {n for n in wheel.namelist() if '.dist-info/' not in n}
    assert have == set(want)
    assert not [n for n in have if wheel.read(n) != want[n].read_bytes()]


def test_wheel_metadata(wheel):
    info = next(n.partition('/')[0] for n in wheel.namelist() if '.dist-info/' in n)
    meta, cfg = wheel.read(f'{info}/METADATA').decode(), settings()
    assert f'\nVersion: {cfg["version"]}\n' in meta and f'\nRequires-Python: >={cfg["min_python"]}\n' in meta
    assert 'nvs = nvs_nb.cli:main' in wheel.read(f'{info}/entry_points.txt').decode()
    needs = re.findall(r'^Requires-Dist: (.*)$', meta, re.M)
    assert sum('extra ==' not in n for n in needs) == len(cfg['requirements'].split())


def test_constraints_pin_every_requirement():
    "Whatever `make` installs by name is pinned to one exact version"
    def norm(name): return re.sub(r'[-_.]+', '-', name).lower()
    lines = [x for x in (ROOT / 'constraints.txt').read_text().splitlines() if x and not x.startswith('#')]
    assert not [x for x in lines if not re.fullmatch(r"[\w.-]+==[\w.]+(; python_version (<|>=) '3\.11')?", x)]
    pinned = {norm(x.partition('==')[0]) for x in lines}
    wanted = f'{settings()["requirements"]} {settings()["dev_requirements"]}'.split()
    wanted = [re.match(r'[\w.-]+', r)[0] for r in wanted]
    assert not [w for w in wanted if norm(w) not in pinned]


def test_no_local_paths():
    "No tracked file names a folder of the machine it was made on"
    command = ['git', 'ls-files', '-z', '-co', '--exclude-standard']
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if git.returncode: pytest.skip('not a git checkout')
    places = [f'/{name}/'.encode() for name in ('work', 'root')]
    paths = [ROOT / n for n in git.stdout.split('\0') if n and (ROOT / n).is_file()]
    assert not [p.relative_to(ROOT).as_posix() for p in paths if any(x in p.read_bytes() for x in places)]
