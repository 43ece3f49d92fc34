"""What every chapter owes its reader, and how the notebooks hold together. What fails today is listed in TODO; a name
there that passes fails the test, so the list can only shrink.

    python tests/test_course.py           print what is measured, chapter by chapter, and what fails
    python tests/test_course.py --todo    print the TODO of today
"""
import ast
import importlib.util
import json
import re
import sys
import textwrap
from base64 import b64decode
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / 'nbs'
spec = importlib.util.spec_from_file_location('chapter_links', ROOT / '.ci/chapter_links.py')
spec.loader.exec_module(chapter_links := importlib.util.module_from_spec(spec))

CHAPTERS = {p.relative_to(NBS).with_suffix('').as_posix(): p for p in chapter_links.chapters()}
NOTEBOOKS = {p.relative_to(NBS).with_suffix('').as_posix(): p for p in sorted(NBS.rglob('[!.]*.ipynb'))
             if '.ipynb_checkpoints' not in p.parts}
WORDS = {'5_baselines': (500, 1200), '6_speed': (500, 1000)}  # of one chapter; else (700, 1800)
COURSE = 22_500  # words of the chapters 01 to 16
LINES, FILE, PICTURE, TURNS = 60, 700 * 1024, 300 * 1024, 2

TODO = {}  # point -> chapters that fail it today


@cache
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def texts(path): return [source(c) for c in cells(path) if c['cell_type'] == 'markdown']
def without_code(text): return re.sub(r'```.*?```', '', text, flags=re.S)


def words(path):
    "Words of the prose: no code, no formulas, of a link what it says"
    text = without_code('\n'.join(texts(path)))
    text = re.sub(r'\$\$.*?\$\$|<[^>]+>', ' ', re.sub(r'\]\([^)]*\)', ']', text), flags=re.S)
    return sum(bool(re.search(r'\w', w)) for w in text.split())


def moving(path):
    "Of each moving picture: bytes, what it is for those who cannot see it"
    found = []
    for cell in cells(path):
        alt = re.search(r'^#\s*\|\s*fig-alt:\s*(\S.*)', source(cell), re.M)
        for out in cell.get('outputs', []):
            data, meta = out.get('data', {}), out.get('metadata', {})
            for kind in {'image/gif', 'image/webp'} & data.keys():
                told = meta.get(kind, {}).get('alt') or (alt and alt[1])
                found.append((len(b64decode(''.join(data[kind]))), told))
            html = ''.join(data.get('text/html', ''))
            for video in re.findall(r'<video.*?</video>', html, re.S):
                told = re.search(r'(?:aria-label|title|alt)="([^"]+)"', video)
                found.append((len(video) * 3 // 4, told and told[1]))
    return found


@cache
def code(path, run_only=False):
    "The syntax trees of the code cells that a reader sees, or of those that tests run"
    without = r'^#\s*\|\s*eval:\s*false' if run_only else r'^#\s*\|\s*hide\b'
    sources = [source(c) for c in cells(path) if c['cell_type'] == 'code' and not re.search(without, source(c), re.M)]
    return [ast.parse(re.sub(r'^\s*[%!].*', '', s, flags=re.M)) for s in sources]


def called(tree, prefix):
    "What is called by a name that begins with `prefix`: name and the names among its arguments"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith(prefix):
            yield node.func.id, [a.id for a in node.args if isinstance(a, ast.Name)]


def turns(path):
    "Your-turn checks of a chapter: name -> whether the solution is run, with the check or what it asks for"
    defined = {n.name for t in code(path) for n in t.body
               if isinstance(n, ast.FunctionDef) and n.name.startswith('check_')}
    solved = set()
    name = chapter_links.SOLUTIONS.get(path.parent.name, path.stem)
    for tree in code(NBS / f'solutions/{name}.ipynb', run_only=True):
        solved |= {n for n, _ in called(tree, 'check_')}
        solved |= {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        solved |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    asked = [c for t in code(path) for c in called(t, 'check_') if c[0] in defined]
    return {check: check in solved or bool(solved.intersection(*[
        [a for c, args in asked if c == check for a in args]])) for check in sorted(defined & {c for c, _ in asked})}


def slugs(path):
    "What a link may say behind `#`: the headings as GitHub and as Jupyter name them"
    heads = re.findall(r'^#+ (.+?)\s*$', without_code('\n'.join(texts(path))), re.M)
    plain = [re.sub(r'[`*]|\]\([^)]*\)|\[', '', h) for h in heads]
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in plain} | {h.replace(' ', '-') for h in plain}


def dead_links(path):
    "Relative links that lead nowhere"
    text = re.sub(r'`[^`\n]*`', '', without_code('\n'.join(texts(path))))
    links = re.findall(r'\]\(([^)\s]+)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    dead = []
    for link in links:
        if re.match(r'[a-z]+:', link): continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        unknown = anchor and target.suffix == '.ipynb' and target.exists() and anchor not in slugs(target)
        if unknown or not target.exists(): dead.append(link)
    return dead


def unlinked(path):
    "Other notebooks that are named outside of a link"
    text = re.sub(r'(?<!!)\[[^\]]*\]\([^)]*\)', '', without_code('\n'.join(texts(path))))
    text = re.sub(r'`[^`\n]* [^`\n]*`', '', text)  # a command
    stems = {p.stem for p in CHAPTERS.values()}
    names = '|'.join(f'0?{int(p.stem[:2])} {chapter_links.title(p)[3:]}' for p in CHAPTERS.values()
                     if p.parent.name not in chapter_links.SOLUTIONS)
    found = [m for m in re.findall(r'\b\d\d_[a-z_]+\b', text) if m in stems]
    found += re.findall(rf'\b(?:{names})\b', text) + re.findall(r'\b[Cc]hapters? \d+', text)
    found += re.findall(r'[\w./-]+\.ipynb', text)
    own = path.stem, chapter_links.title(path) if path in CHAPTERS.values() else '', path.name
    return sorted({m for m in found if m not in own})


def within(n, low, high, what): return None if low <= n <= high else f'{n:,} {what}, not {low:,} to {high:,}'


def check_words(path): return within(words(path), *WORDS.get(path.parent.name, (700, 1800)), 'words')


def check_lines(path):
    most = max(len(source(c).splitlines()) for c in cells(path) if c['cell_type'] == 'code')
    return within(most, 0, LINES, 'lines in a cell')


def check_file(path): return within(path.stat().st_size, 0, FILE, 'bytes')


def check_moving(path):
    pictures = moving(path)
    if not pictures: return 'nothing moves'
    if not all(alt for _, alt in pictures): return 'a moving picture has no alt text'
    return within(max(n for n, _ in pictures), 0, PICTURE, 'bytes of a moving picture')


def check_turns(path):
    found = turns(path)
    if len(found) < TURNS: return f'{len(found)} your-turn cells with a check'
    missing = [k for k, solved in found.items() if not solved]
    return f'not solved in nbs/solutions: {", ".join(missing)}' if missing else None


def check_solution(path):
    name = chapter_links.SOLUTIONS.get(path.parent.name, path.stem)
    kinds = {k for c in cells(NBS / f'solutions/{name}.ipynb') for o in c.get('outputs', []) for k in o.get('data', {})}
    return None if any(k.startswith('image/') for k in kinds) else 'the solutions show no figure'


def check_links(path):
    try: chapter_links.main([path], check=True)
    except SystemExit as error: return str(error)


def check_dead(path): return ', '.join(dead_links(path))
def check_named(path): return ', '.join(unlinked(path))


OF_CHAPTERS = dict(words=check_words, lines=check_lines, file=check_file, moving=check_moving, turns=check_turns,
                   solution=check_solution, links=check_links)
OF_NOTEBOOKS = dict(dead=check_dead, named=check_named)


def failing(point):
    check, paths = (OF_CHAPTERS[point], CHAPTERS) if point in OF_CHAPTERS else (OF_NOTEBOOKS[point], NOTEBOOKS)
    told = {name: check(path) for name, path in paths.items()}
    return {name: why for name, why in told.items() if why}


@pytest.mark.parametrize('point', [*OF_CHAPTERS, *OF_NOTEBOOKS])
def test_point(point):
    todo, found = set(TODO.get(point, '').split()), failing(point)
    new = [f'{name}: {why}' for name, why in found.items() if name not in todo]
    if new: pytest.fail(f'{point}:\n' + '\n'.join(new), pytrace=False)
    done = todo - found.keys()
    if done: pytest.fail(f'{point}: these pass now, take them out of TODO: {" ".join(sorted(done))}', pytrace=False)


def in_course(name): return name[0] in '1234'


def test_course_length(record_property):
    total = sum(words(p) for name, p in CHAPTERS.items() if in_course(name))
    for line in table(): record_property('budget', line)
    assert (total > COURSE) == ('course' in TODO), f'{total:,} words, not {COURSE:,}: is it in TODO?'


def table():
    "One line a chapter, with all that is measured"
    yield f'{"":26}{"words":>7}{"lines":>7}{"KB":>6}{"moving":>8}{"checks":>8}'
    for name, path in CHAPTERS.items():
        lines = max(len(source(c).splitlines()) for c in cells(path) if c['cell_type'] == 'code')
        yield (f'{name:26}{words(path):7,}{lines:7}{path.stat().st_size // 1024:6}{len(moving(path)):8}'
               f'{sum(turns(path).values()):8}')
    total = sum(words(p) for name, p in CHAPTERS.items() if in_course(name))
    yield f'{"chapters 01 to 16":26}{total:7,} of {COURSE:,} words'


def markdown(text): return dict(cell_type='markdown', id='a', metadata={}, source=[text])
def python(text, **data):
    outputs = [dict(data=data, metadata={}, output_type='display_data')] * bool(data)
    return dict(cell_type='code', execution_count=None, id='b', metadata={}, outputs=outputs, source=[text])


def notebook(path, *cells):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))


@pytest.fixture
def small(tmp_path, monkeypatch):
    "A course of two chapters, the second without anything that a chapter owes"
    monkeypatch.setattr(chapter_links, 'NBS', tmp_path)
    monkeypatch.setitem(globals(), 'NBS', tmp_path)
    paths = tmp_path / '1_method/01_a.ipynb', tmp_path / '1_method/02_b.ipynb'
    monkeypatch.setitem(globals(), 'CHAPTERS', {p.stem: p for p in paths})
    checks = python('def check_x(f): pass\ndef check_y(f): pass'), python('#| eval: false\ncheck_x(f); check_y(g)')
    end = python('import nbdev; nbdev.nbdev_export()')
    notebook(paths[0], markdown('# A\n' + 'word ' * 800), *checks, markdown('Bye. Next: [b](x).'), end)
    notebook(paths[1], markdown('# B\n[a](01_a.ipynb#C) See 01 A and 01_a.'),
             python('\n' * LINES + 'pass', **{'image/gif': 'AAAA'}), end)
    notebook(tmp_path / 'solutions/01_a.ipynb', python('def f(): pass'), python('check_y(g)', **{'image/png': 'AAAA'}))
    notebook(tmp_path / 'solutions/02_b.ipynb', python('pass'))
    return paths


def test_faults_are_found(small):
    good, bad = small
    for point in ('words', 'lines', 'file', 'turns', 'solution'): assert not OF_CHAPTERS[point](good), point
    for point in ('words', 'lines', 'turns', 'solution', 'links'): assert OF_CHAPTERS[point](bad), point
    assert check_moving(good) == 'nothing moves' and 'alt' in check_moving(bad)
    assert check_dead(bad) == '01_a.ipynb#C' and check_named(bad) == '01 A, 01_a'


def test_links_are_written_once(small):
    stored = [c['outputs'] for c in json.loads(small[1].read_text())['cells'] if 'outputs' in c]
    chapter_links.main([], check=False)
    first, second = (json.loads(p.read_text())['cells'] for p in small)
    assert source(first[-3]) == 'Bye.'
    assert source(first[-2]) == 'Next: [02 B](02_b.ipynb). Solutions: [01_a](../solutions/01_a.ipynb).'
    assert source(second[-2]) == 'Before: [01 A](01_a.ipynb). Solutions: [02_b](../solutions/02_b.ipynb).'
    assert [c['outputs'] for c in second if 'outputs' in c] == stored
    before = [p.read_bytes() for p in small]
    chapter_links.main([], check=True)
    chapter_links.main([], check=False)
    assert before == [p.read_bytes() for p in small]


def todo():
    "The source of TODO as it should be today"
    yield 'TODO = {'
    for point in (*OF_CHAPTERS, *OF_NOTEBOOKS):
        head, names = f"    '{point}': ", textwrap.wrap(' '.join(failing(point)), 100)
        if names: yield head + ('\n' + ' ' * len(head)).join(f"'{x} '" for x in names) + ','
    if sum(words(p) for name, p in CHAPTERS.items() if in_course(name)) > COURSE: yield "    'course': 'words',"
    yield '}'


if __name__ == '__main__':
    print(*(todo() if '--todo' in sys.argv else table()), sep='\n')
    for point in (*OF_CHAPTERS, *OF_NOTEBOOKS) if '--todo' not in sys.argv else ():
        print(f'{point}:', *(f'{k} ({why})' for k, why in failing(point).items()), sep='\n  ')
