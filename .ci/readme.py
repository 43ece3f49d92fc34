"""Write README.md from nbs/index.ipynb, with the same text every time.

    python .ci/readme.py            write README.md and the pictures it shows (nbs/images/readme-*)
    python .ci/readme.py --check    change nothing; exit code 1 and one line where something is stale

Cells marked `#| hide` are dropped, `#| echo: false` keeps only what a cell shows, and `#| fig-alt: words` says what
is to be seen in its picture.
Links in the index are relative to nbs/; in README.md they become relative to the top folder.
"""
import re
import sys
from base64 import b64decode
from pathlib import Path
from posixpath import normpath

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor, RegexRemovePreprocessor

ROOT = Path(__file__).resolve().parent.parent
INDEX, README, IMAGES = ROOT / 'nbs/index.ipynb', ROOT / 'README.md', ROOT / 'nbs/images'
NOTE = '<!-- Written by .ci/readme.py from nbs/index.ipynb: edit the notebook. -->\n\n'
KINDS = {'image/gif': 'gif', 'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}
DIRECTIVE = re.compile(r'^\s*#\s*\|.*\n?', re.M)
ECHO = re.compile(r'^\s*#\s*\|\s*(echo\s*:\s*false|hide_input)', re.M | re.I)
ALT = re.compile(r'^\s*#\s*\|\s*fig-alt\s*:\s*(.*?)\s*$', re.M)
LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z][a-z+.-]*:|[#/])([^)"\s]+)', re.I)


class Shape(Preprocessor):
    "Directives out of the code, pictures out to files, links from the top folder"

    def preprocess(self, nb, resources):
        self.images = resources['readme_images'] = {}
        nb.metadata['language_info'] = {'name': 'python'}
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == 'markdown': cell.source = from_top(cell.source)
        if cell.cell_type != 'code': return cell, resources
        if ECHO.search(cell.source): cell.metadata['transient'] = {'remove_source': True}
        alt = ALT.search(cell.source)
        alt = alt[1].strip('"\'') if alt else ''
        cell.source = DIRECTIVE.sub('', cell.source).strip('\n')
        for out in cell.outputs:
            kind = next((k for k in KINDS if k in out.get('data', {})), None)
            if kind: out.data = {'text/markdown': self.place(out.data[kind], kind, alt)}
            elif 'text/markdown' in out.get('data', {}): out.data = {'text/markdown': from_top(out.data['text/markdown'])}
        return cell, resources

    def place(self, data, kind, alt):
        "Put a picture in the list of files to write; returns the markdown that shows it"
        name = f'readme-{len(self.images) + 1}.{KINDS[kind]}'
        self.images[name] = data.encode() if kind == 'image/svg+xml' else b64decode(data)
        return f'![{alt}]({IMAGES.relative_to(ROOT).as_posix()}/{name})'


def from_top(text):
    "Links relative to nbs/ become relative to the top folder, outside of code"
    parts = re.split(r'(```.*?```|`[^`\n]*`)', text, flags=re.S)
    return ''.join(p if i % 2 else LINK.sub(lambda m: m[1] + normpath('nbs/' + m[2]), p) for i, p in enumerate(parts))


def render():
    "The text of README.md and the bytes of its pictures by file name"
    exporter = MarkdownExporter()
    exporter.register_preprocessor(RegexRemovePreprocessor(patterns=[r'\s*#\s*\|\s*hide\s*(\n|$)']), True)
    exporter.register_preprocessor(Shape(), True)
    text, resources = exporter.from_notebook_node(nbformat.read(INDEX, as_version=4))
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return NOTE + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', resources['readme_images']


def main(check):
    text, images = render()
    want = {README: text.encode(), **{IMAGES / n: b for n, b in images.items()}}
    extra = set(IMAGES.glob('readme-*')) - set(want)
    stale = [p for p, b in want.items() if not p.exists() or p.read_bytes() != b] + sorted(extra)
    if check and stale:
        names = ', '.join(p.relative_to(ROOT).as_posix() for p in stale)
        raise SystemExit(f'not in step with nbs/index.ipynb: {names} (mend it with: make prepare)')
    if check: return
    for p in extra: p.unlink()
    for p in stale:
        if p in extra: continue
        p.parent.mkdir(exist_ok=True)
        p.write_bytes(want[p])


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--check']): raise SystemExit(__doc__)
    main(check=bool(sys.argv[1:]))
