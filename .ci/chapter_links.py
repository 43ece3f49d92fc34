"""Write at the end of each chapter where the reader came from, where to go next, and where the solutions are.

    python .ci/chapter_links.py                  all chapters
    python .ci/chapter_links.py NOTEBOOK ...     these only
    python .ci/chapter_links.py --check [...]    change nothing; exit code 1 and one line where something is stale

The line has a cell of its own before the last one (`nbdev_export`). Links of this kind in the chapter's last text are
taken out; a sentence beside them stays, and so do all stored outputs.
"""
import json
import os
import re
import sys
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / 'nbs'
SOLUTIONS = {'5_baselines': 'baselines', '6_speed': 'speed'}  # one notebook for the folder; else one for each chapter
LINK = r'(?:Before|Previous|Next|Solutions): \[[^\]]*\]\([^)]*\)\.?'
ID = 'chapter-links'


def chapters():
    "Paths of all chapters, in reading order"
    return sorted(NBS.glob('[1-9]_*/[0-9][0-9]_*.ipynb'))


def title(path):
    "What a link to the chapter says: `03 Clips`; baselines and speed, whose numbers begin anew, go without"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    name = re.search(r'^# (.+)', ''.join(cells[0]['source']), re.M)[1]
    return name if path.parent.name in SOLUTIONS else f'{path.name[:2]} {name}'


def line(path):
    "The line for the chapter at `path`"
    every = chapters()
    i = every.index(path)
    near = {'Before': every[i-1] if i else None, 'Next': every[i+1] if i + 1 < len(every) else None}
    found = {k: f'[{title(p)}]({os.path.relpath(p, path.parent)})' for k, p in near.items() if p}
    name = SOLUTIONS.get(path.parent.name, path.stem)
    found['Solutions'] = f'[{name}](../solutions/{name}.ipynb)'
    return ' '.join(f'{k}: {v}.' for k, v in found.items())


def linked(nb, text):
    "The notebook with `text` as its chapter line, and no other"
    cells = [c for c in nb['cells'] if c.get('id') != ID]
    end = next((i for i in reversed(range(len(cells))) if 'nbdev_export(' in ''.join(cells[i]['source'])), len(cells))
    last = next(c for c in reversed(cells) if c['cell_type'] == 'markdown')
    kept = [re.sub(rf'[ \t]*{LINK}[ \t]*', ' ', s).strip() if re.search(LINK, s) else s
            for s in ''.join(last['source']).split('\n')]
    last['source'] = re.sub(r'\n{3,}', '\n\n', '\n'.join(kept)).strip().splitlines(True)
    if not last['source']: cells.remove(last)
    end -= not last['source']
    cell = dict(cell_type='markdown', id=ID, metadata={}, source=[text])
    return dict(nb, cells=[*cells[:end], cell, *cells[end:]])


def main(paths, check):
    every = chapters()
    wrong = [p for p in paths if p not in every]
    if wrong: raise SystemExit(f'no chapter: {wrong[0]}')
    stale = []
    for path in paths or every:
        old = path.read_text(encoding='utf-8')
        new = json.dumps(linked(json.loads(old), line(path)), sort_keys=True, indent=1, ensure_ascii=False) + '\n'
        if new == old: continue
        stale.append(path.relative_to(NBS).as_posix())
        if not check: path.write_text(new, encoding='utf-8')
    if check and stale: raise SystemExit(f'links to write: {", ".join(stale)} (mend it with: make prepare)')


if __name__ == '__main__':
    names = [a for a in sys.argv[1:] if a != '--check']
    if any(a.startswith('-') for a in names): raise SystemExit(__doc__)
    main([Path(a).resolve() for a in names], check='--check' in sys.argv)
