"""Build the book, a site of all notebooks from their stored outputs and of the library's reference. Nothing is run.

    python docs/book.py                          the whole book, to _docs/html
    python docs/book.py --only '1_method/*'      only notebooks that match (and index): quicker
    python docs/book.py --explorer DIR           with the page that `nvs explore RUN` wrote to DIR

Steps: copies of the notebooks are shaped for readers and go to _docs/src; pages of the reference are added; Sphinx
makes HTML of both, with every warning an error. Chapters also go to html/colab with a first cell that fetches the
library when it runs in Colab: that copy is what a chapter's Colab badge opens.
"""
import argparse
import json
import re
import shutil
import sys
from base64 import b64decode
from configparser import ConfigParser
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from posixpath import normpath, relpath

import api

ROOT = Path(__file__).resolve().parent.parent
PARTS = {'1_method': 'The method', '2_scores': 'Scores', '3_paper': 'The paper', '4_beyond': 'Beyond the paper',
         '5_baselines': 'The baselines', '6_speed': 'Speed', 'library': 'The library', 'solutions': 'Solutions'}
COLAB = 'https://colab.research.google.com/github'
BADGE = '_badge.svg'  # drawn by docs/badge.svg: no network to read the book
DIRECTIVE = re.compile(r'^[ \t]*#[ \t]*\|[ \t]*(?P<name>[\w-]+)[ \t]*:?[ \t]*(?P<value>.*?)[ \t]*(?:\n|$)', re.M)
# Code is skipped; in [`label`](target) the link begins first.
LINK = re.compile(r'```.*?```|`[^`\n]*`|'
                  r'(?P<head>!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(|(?:src|href)=")'
                  r'(?P<to>(?![a-z][a-z+.-]*:|[#/])[^)"\s]+)', re.S)


def settings():
    config = ConfigParser(delimiters=['='])
    config.read(ROOT / 'settings.ini', encoding='utf-8')
    return config['DEFAULT']


CFG = settings()
REPO = f'{CFG["git_url"].rstrip("/")}/blob/{CFG["branch"]}'
RAW = REPO.replace('https://github.com/', 'https://raw.githubusercontent.com/').replace('/blob/', '/')
SITE = CFG['doc_host'] + CFG['doc_baseurl']


def source(cell): return ''.join(cell['source'])
def text_of(data): return ''.join(data)
def alt_of(output): return next((m['alt'] for m in output.get('metadata', {}).values() if 'alt' in m), '')


def directives(text):
    "Names and values of the `#|` lines of a cell"
    return {m['name']: m['value'] for m in DIRECTIVE.finditer(text)}


def modules():
    "Path from the top of each module that a notebook exports, and its name: {'nvs_nb/models/nvs.py': 'models.nvs'}"
    lib = ROOT / CFG['lib_path']
    return {p.relative_to(ROOT).as_posix(): '.'.join(p.relative_to(lib).with_suffix('').parts)
            for p in sorted(lib.rglob('*.py')) if p.name[0] != '_'}


def relink(text, page, to):
    "Every relative link and picture of a markdown text, resolved from the top and passed through `to(path, picture)`"
    def one(m):
        if not m['to']: return m[0]
        path, hash, anchor = m['to'].partition('#')
        picture = m['head'][0] == '!' or m['head'].startswith('src')
        return m['head'] + to(normpath(f'nbs/{Path(page).parent.as_posix()}/{path}'), picture, hash + anchor)
    return LINK.sub(one, text)


class Stage:
    "The folder that Sphinx reads."

    def __init__(self, top, pages, whole=True):
        self.top, self.pages, self.homes = Path(top), pages, {}  # homes: module -> page of the notebook that exports it
        for page, nb in pages.items():
            for c in nb['cells']:
                name = c['cell_type'] == 'code' and directives(source(c)).get('default_exp')
                if name: self.homes[name] = page
        self.modules = {p: m for p, m in modules().items() if whole or m in self.homes}

    def to(self, page):
        "Where a link of a page of the book leads: another page, a copied picture, a file in the repository"
        def to(path, picture, anchor):
            here = Path(page).parent.as_posix()
            if picture:
                if not (ROOT / path).is_file(): raise SystemExit(f'nbs/{page}: there is no picture {path}')
                copy = self.top / '_pictures' / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, copy)
                return f'/_pictures/{path}'
            inner = path.removeprefix('nbs/')
            if inner in self.pages: return relpath(inner, here) + anchor
            if path in self.modules: return relpath(f'api/{self.modules[path]}.md', here)
            return f'{REPO}/{path}{anchor}'
        return to

    def shape(self, page):
        "A notebook as the book shows it"
        nb, to = json.loads(json.dumps(self.pages[page])), self.to(page)
        cells = []
        for c in nb['cells']:
            text = source(c)
            if c['cell_type'] == 'markdown':
                cells.append({**c, 'source': relink(text, page, to)})
                continue
            if c['cell_type'] != 'code' or 'hide' in (about := directives(text)): continue
            text = DIRECTIVE.sub('', text).strip('\n')
            if not text: continue
            tags = []
            if about.get('echo') == 'false' or 'hide_input' in about: tags = ['remove-input']
            elif all(re.match(r'(from|import) |[ )#]|$', x) for x in text.split('\n')): tags = ['hide-input']
            alt = next((a for o in c['outputs'] if (a := alt_of(o))), about.get('fig-alt', '').strip('"\''))
            for o in c['outputs']: self.output(o, page, alt)
            cells.append({**c, 'source': text, 'metadata': {'tags': tags, 'mystnb': {'image': {'alt': alt}}}})
        self.head(cells[0], page)
        nb['cells'], nb['metadata']['language_info'] = cells, {'name': 'python'}
        return nb

    def output(self, o, page, alt):
        "Markdown that a cell shows has links, too; WebP, which myst-nb does not know, becomes a file"
        data = o.get('data', {})
        if 'text/markdown' in data: data['text/markdown'] = relink(text_of(data['text/markdown']), page, self.to(page))
        if 'image/webp' in data:
            raw = b64decode(text_of(data.pop('image/webp')))
            name = f'_pictures/{sha256(raw).hexdigest()[:16]}.webp'
            (self.top / '_pictures').mkdir(exist_ok=True), (self.top / name).write_bytes(raw)
            o['data'] = {'text/markdown': f'![{alt}](/{name})'}

    def head(self, cell, page):
        "Number of the chapter before its title; below, where its source is and where it runs"
        if page == 'index.ipynb': return
        folder, name = page.split('/')
        if folder[0] in '1234': cell['source'] = re.sub('^# ', f'# {int(name[:2])} ', cell['source'])
        links = [f'[Notebook]({REPO}/nbs/{page})']
        module = next((m for m, p in self.homes.items() if p == page), None)
        if module: links.append(f'[`{module}`]({relpath(f"api/{module}.md", folder)})')
        badge = f'[![Open in Colab](/{BADGE})]({colab_link(page)})' if in_colab(page) else ''
        line = ' · '.join(links) + f'{" " * bool(badge)}{badge}'
        cell['source'] = cell['source'].rstrip() + f'\n\n:::{{container}} chapter-links\n{line}\n:::\n'

    def write(self):
        for page in self.pages:
            target = self.top / page
            target.parent.mkdir(parents=True, exist_ok=True)
            nb = self.shape(page)
            if page == 'index.ipynb':
                nb['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source=self.contents()))
            target.write_text(json.dumps(nb), encoding='utf-8')
        (self.top / 'api').mkdir()
        for path, name in self.modules.items():
            home = self.homes.get(name)
            intro = f'Explained in [](../{home}). ' if home else ''
            page = api.Module(ROOT / path, name).page(f'{intro}Source: [{path}]({REPO}/{path}).')
            (self.top / f'api/{name}.md').write_text(page, encoding='utf-8')
        shutil.copy(Path(__file__).parent / 'badge.svg', self.top / BADGE)

    def contents(self):
        "The contents of the book, as the tables at its side show them"
        blocks = []
        if (self.top / 'explorer.md').exists(): blocks.append(toctree('Look and touch', ['explorer']))
        for part in sorted({p.split('/')[0] for p in self.pages if '/' in p}, key=[*PARTS].index):
            blocks.append(toctree(PARTS[part], [p[:-6] for p in self.pages if p.startswith(part + '/')]))
        blocks.append(toctree('Reference', [f'api/{m}' for m in self.modules.values()]))
        return '\n\n'.join(blocks)


def toctree(caption, entries):
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(entries) + '\n```'


# ---- Colab

def in_colab(page): return page[0] in '123456'


def colab_link(page):
    "The copy of a chapter on the branch of the published site"
    return f'{COLAB}/{CFG["git_url"].rstrip("/").split("github.com/")[1]}/blob/gh-pages/colab/{page}'


def colab_setup(page):
    "The first cell of a chapter in Colab: it does nothing elsewhere"
    needs = [r for r in CFG['notebook_requirements'].split() if re.match('fastcore|imageio|scikit-image', r)]
    place, folder = f'/content/{CFG["repo"]}', Path(page).parent.as_posix()
    return '\n'.join([
        '# In Colab this brings the library and the files that the chapters read; elsewhere it does nothing.',
        'import sys',
        "if 'google.colab' in sys.modules:",
        f'    !test -d {place} || git clone -q --depth 1 {CFG["git_url"]} {place}',
        f'    !pip install -q {place} ' + ' '.join(f'"{r}"' for r in needs),
        f'    %cd -q {place}/nbs/{folder}'])


def for_colab(page, nb):
    "A chapter with that cell; its links lead to the site, and its last cell, which exports the library, is gone"
    def to(path, picture, anchor):
        if picture: return f'{RAW}/{path}'
        if path.startswith('nbs/') and path.endswith('.ipynb'): return f'{SITE}/{path[4:-6]}.html{anchor}'
        return f'{REPO}/{path}{anchor}'
    nb = json.loads(json.dumps(nb))
    first = dict(cell_type='code', id='colab', execution_count=None, metadata={}, outputs=[], source=colab_setup(page))
    cells = [c for c in nb['cells'] if 'nbdev_export(' not in source(c)]
    for c in cells:
        if c['cell_type'] == 'markdown': c['source'] = relink(source(c), page, to)
        for o in c.get('outputs', []):
            if 'text/markdown' in (data := o.get('data', {})):
                data['text/markdown'] = relink(text_of(data['text/markdown']), page, to)
    nb['cells'] = [first, *cells]
    return nb


# ---- all of it

def notebooks(only=()):
    found = {p.relative_to(ROOT / 'nbs').as_posix(): p for p in sorted((ROOT / 'nbs').rglob('*.ipynb'))}
    keep = {n for n in found if not any(x.startswith('.') for x in n.split('/'))
            and (not only or n == 'index.ipynb' or any(fnmatch(n, o) for o in only))}
    return {n: json.loads(found[n].read_text(encoding='utf-8')) for n in sorted(keep)}


def stage(top, only=(), explorer=None):
    "Write everything that Sphinx reads to the folder `top`/src, and what it copies as it is to `top`/extra"
    src, extra, pages = top / 'src', top / 'extra', notebooks(only)
    for folder in (src, extra):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if explorer:
        shutil.copytree(explorer, extra / 'explorer')
        shutil.copy(Path(__file__).parent / 'explorer.md', src)
    Stage(src, pages, not only).write()
    for page in filter(in_colab, pages):
        target = extra / 'colab' / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(for_colab(page, pages[page]), indent=1), encoding='utf-8')
    (extra / '.nojekyll').touch()  # folders that begin with _ are served
    return src


def build(top, only=(), explorer=None):
    "The exit code of Sphinx"
    from sphinx.cmd.build import main
    src = stage(top, only, explorer)
    shutil.rmtree(top / 'html', ignore_errors=True)
    return main(['-q', '-W', '--keep-going', '-c', str(Path(__file__).parent), '-d', str(top / 'doctrees'), '-E',
                 '-D', f'html_extra_path={top / "extra"}', str(src), str(top / 'html')])


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', action='append', default=[], metavar='PATTERN')
    p.add_argument('--explorer', type=Path, metavar='DIR')
    p.add_argument('--out', type=Path, default=ROOT / CFG['doc_path'], metavar='DIR')
    a = p.parse_args(argv)
    code = build(a.out, a.only, a.explorer)
    if not code: print(f'the book is {a.out / "html/index.html"}')
    return code


if __name__ == '__main__': sys.exit(main())
