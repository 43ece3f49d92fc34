"The book: what readers see of the notebooks, the reference, Colab, and the built site in a browser."
import base64
import re
import subprocess
import sys
import threading
import types
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'docs'))
import api  # noqa: E402
import book  # noqa: E402

PAGES = book.notebooks()
CHAPTERS = [p for p in PAGES if book.in_colab(p)]


def code(text, *outputs): return dict(cell_type='code', id='a', metadata={}, outputs=list(outputs), source=text)
def markdown(text): return dict(cell_type='markdown', id='b', metadata={}, source=text)
def sources(nb): return [book.source(c) for c in nb['cells']]


@pytest.fixture(scope='module')
def staged(tmp_path_factory): return book.Stage(tmp_path_factory.mktemp('book'), PAGES)


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
    "Shape one notebook of a few cells, as the chapter on losses"
    def shape(*cells):
        page = '1_method/06_losses.ipynb'
        nb = dict(metadata={}, cells=[markdown('# Losses\n> three'), *cells])
        made = book.Stage(tmp_path_factory.mktemp('one'), {**PAGES, page: nb})
        return made, made.shape(page)
    return shape


# ---- what readers see

def test_directives_and_hidden_cells_are_gone(staged):
    hidden = exported = 0
    for page, nb in PAGES.items():
        seen = staged.shape(page)
        assert not [x for c in seen['cells'] if c['cell_type'] == 'code' for x in book.source(c).splitlines()
                    if re.match(r'\s*#\s*\|', x)], page
        texts = sources(seen)
        for text in (book.source(c) for c in nb['cells'] if c['cell_type'] == 'code'):
            about, plain = book.directives(text), book.DIRECTIVE.sub('', text).strip('\n')
            if not plain: continue
            assert ('hide' in about) == (plain not in texts), (page, text[:200])
            hidden, exported = hidden + ('hide' in about), exported + ('export' in about)
    assert hidden > 100 and exported > 100


def test_a_cell_shows_what_its_directives_say(stage):
    png = dict(output_type='display_data', data={'image/png': ''}, metadata={'image/png': {'alt': 'a chair'}})
    made, nb = stage(code('#| hide\nx = 1'), code('#| default_exp models.losses'), code('#| export\ndef f(): pass'),
                     code('#| echo: false\n#| fig-alt: two chairs\nshow()', png), code('# | hide_input\ny'),
                     code('#| export\nimport torch\nfrom x import (a,\n    b)  # c'), code('#| fig-alt: "a desk"\nz'))
    assert sources(nb)[1:] == ['def f(): pass', 'show()', 'y', 'import torch\nfrom x import (a,\n    b)  # c', 'z']
    tags = [' '.join(c['metadata']['tags']) for c in nb['cells'][1:]]
    assert tags == ['', 'remove-input', 'remove-input', 'hide-input', '']
    alts = [c['metadata']['mystnb']['image']['alt'] for c in nb['cells'][1:]]
    assert alts == ['', 'a chair', '', '', 'a desk']


def test_head_of_a_chapter(stage):
    made, nb = stage(code('#| default_exp models.losses'))
    head = sources(nb)[0]
    assert head.startswith('# 6 Losses\n> three\n') and f'({book.REPO}/nbs/1_method/06_losses.ipynb)' in head
    assert '[`models.losses`](../api/models.losses.md)' in head
    assert 'colab.research.google.com/github/nvs-nb/nvs_nb/blob/gh-pages/colab/1_method/06_losses.ipynb' in head


def test_links_lead_to_pages_pictures_or_the_repository(stage):
    picture = 'data/results/short/supplement2.png'
    made, nb = stage(markdown('[a](04_codes.ipynb#Exercises) [`b`](../../nvs_nb/models/nvs.py) '
                              f'![c](../../{picture}) '
                              '[d](../../LICENSE) [e](https://x.org) `[f](g.md)` [k](#Here)'))
    assert sources(nb)[1] == (f'[a](04_codes.ipynb#Exercises) [`b`](../api/models.nvs.md) ![c](/_pictures/{picture}) '
                              f'[d]({book.REPO}/LICENSE) [e](https://x.org) `[f](g.md)` [k](#Here)')
    assert (made.top / '_pictures' / picture).read_bytes() == (ROOT / picture).read_bytes()
    with pytest.raises(SystemExit, match='there is no picture'): stage(markdown('![c](no.png)'))


def test_webp_becomes_a_file(stage):
    out = dict(output_type='display_data', metadata={'image/webp': {'alt': 'moves'}},
               data={'image/webp': base64.b64encode(b'RIFF').decode(), 'text/plain': '<Image>'})
    made, nb = stage(code('show()', out))
    (shown,) = nb['cells'][1]['outputs'][0]['data'].values()
    name = re.fullmatch(r'!\[moves\]\(/(_pictures/\w+\.webp)\)', shown)[1]
    assert (made.top / name).read_bytes() == b'RIFF'


def test_every_page_is_in_the_contents(staged):
    text = staged.contents()
    assert not [p for p in PAGES if p != 'index.ipynb' and p.removesuffix('.ipynb') not in text.split()]
    assert not [m for m in book.modules().values() if f'api/{m}' not in text.split()]


# ---- the reference

SOURCE = '''"A module with *stars* and an a_b."
__all__ = ['SIZE', 'f', 'Shape', 'Box']
SIZE = 3  # of all
def f(
    x,           # uint8 `(N, 3)` | or none
    *rest,       # more
    width=4, height=5,  # in pixels
    how='fan',   # one of many,
                 # or none of them
    **options,
):  # a tensor
    """Draw $x$.

    Second paragraph."""
class Shape:
    "A shape."
    n: int = within(3, 1, 9)  # its corners
    def area(self, unit): # square metres
        "How large."
    @property
    def round(self): "Whether."
    def _own(self): pass
class Box(Shape):
    def __init__(self, w): pass
'''


def test_page_of_a_module(tmp_path):
    (tmp_path/'m.py').write_text(SOURCE)
    page = api.Module(tmp_path/'m.py', 'm').page()
    assert page.startswith('# m\n\nA module with \\*stars\\* and an a\\_b.\n')
    assert "{py:function} f(x, *rest, width=4, height=5, how='fan', **options)" in page
    assert '| `x` |  | uint8 `(N, 3)` \\| or none |' in page
    assert "| `how` | `'fan'` | one of many, or none of them |" in page
    assert '| `width`, `height` | `4`, `5` | in pixels |' in page and '**Returns** a tensor' in page
    assert 'Draw \\$x\\$.\n\nSecond paragraph.' in page
    assert '{py:class} Shape(n=3)' in page and '| `n` | `3` | its corners |' in page
    assert '{py:method} area(unit)' in page and '**Returns** square metres' in page
    assert '{py:property} round' in page and '_own' not in page and 'Extends `Shape`' in page
    assert 'of all\n\n`3`' in page


@pytest.mark.parametrize('path, name', book.modules().items(), ids=book.modules().values())
def test_reference_holds_every_name(path, name):
    module = api.Module(ROOT / path, name)
    page = module.page()
    assert module.names and not [n for n in module.names if not re.search(rf'\{{py:\w+\}} {n}\b', page)]


# ---- Colab

@pytest.mark.parametrize('page', CHAPTERS)
def test_chapter_for_colab(page):
    nb = book.for_colab(page, PAGES[page])
    assert sources(nb)[0] == book.colab_setup(page) and not any('nbdev_export(' in s for s in sources(nb))
    for c in nb['cells']:
        if c['cell_type'] == 'markdown':
            assert not [m['to'] for m in book.LINK.finditer(book.source(c)) if m['to']]


def test_first_cell_in_colab(monkeypatch):
    "It does nothing here; in Colab it fetches the library and goes to the folder of the notebook"
    from IPython.core.inputtransformer2 import TransformerManager
    python, done = TransformerManager().transform_cell(book.colab_setup('3_paper/12_exchange.ipynb')), []
    shell = types.SimpleNamespace(system=done.append, run_line_magic=lambda *a: done.append(' '.join(a)))
    exec(python, dict(get_ipython=lambda: shell))
    assert done == []
    monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('google.colab'))
    exec(python, dict(get_ipython=lambda: shell))
    fetch, install, go = done
    assert 'git clone' in fetch and book.CFG['git_url'] in fetch and '"fastcore<2"' in install
    assert go == 'cd -q /content/nvs_nb/nbs/3_paper' and (ROOT / go.split('nvs_nb/', 1)[1]).is_dir()


# ---- the site

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "A small book of real pages, with an explorer"
    for name in ('sphinx', 'myst_nb', 'sphinx_book_theme'): pytest.importorskip(name, reason="pip install '.[book]'")
    top = tmp_path_factory.mktemp('site')
    (top / 'explorer').mkdir()
    (top / 'explorer/index.html').write_text('<p id="here">the explorer')
    command = [sys.executable, ROOT / 'docs/book.py', '--out', top / 'out', '--explorer', top / 'explorer']
    for page in ('1_method/06*', '1_method/07*', 'library/sampler*'): command += ['--only', page]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return top / 'out/html'


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def address(site):
    "The site as a server gives it: from files alone, a search finds pages but cannot quote them"
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    "Open a page of the site; at the end, nothing may have been asked of another machine, or gone wrong"
    contexts, wrong = [], []
    def go(name, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on('request', lambda r: r.url.startswith((address, 'data:', 'blob:')) or wrong.append(r.url))
        page.on('response', lambda r: r.status < 400 or wrong.append(r.url))
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('console', lambda m: m.type == 'error' and wrong.append(m.text))
        page.goto(address + name)
        return page
    yield go
    for c in contexts: c.close()
    assert not wrong


def test_site_is_whole(site):
    text = (site / '1_method/06_losses.html').read_text(encoding='utf-8')
    assert '<math' in text and 'class="pst-error"' not in text and '#| ' not in text
    assert 'rel="next"' in text or 'right-next' in text
    assert (site / 'colab/1_method/06_losses.ipynb').exists() and (site / '.nojekyll').exists()
    assert 'triplet_loss' in (site / 'api/models.losses.html').read_text(encoding='utf-8')
    assert not [p for p in site.rglob('*.html') if 'src="http' in p.read_text(encoding='utf-8')]


def test_search_finds_triplet(open_page):
    page = open_page('search.html?q=triplet')
    page.wait_for_selector('ul.search li', timeout=20_000)
    found = page.locator('ul.search li').all_inner_texts()
    assert any('Losses' in x for x in found) and any('triplet_loss' in x for x in found), found


@pytest.mark.parametrize('name', 'index 1_method/06_losses api/models.losses'.split())
def test_no_page_is_wider_than_the_screen(open_page, name):
    page = open_page(f'{name}.html', viewport=dict(width=1280, height=800))
    for width in 1280, 390:
        page.set_viewport_size(dict(width=width, height=800))
        assert page.evaluate('document.documentElement.scrollWidth') <= width
    broken = 'Array.from(document.images).filter(i => i.complete && !i.naturalWidth).map(i => i.src)'
    assert page.evaluate(broken) == []


def test_dark_mode(open_page):
    page = open_page('1_method/06_losses.html', color_scheme='dark')
    color = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert sum(map(int, re.findall(r'\d+', color)[:3])) < 150, color


def test_explorer_is_part_of_the_book(open_page):
    page = open_page('explorer.html')
    assert page.frame_locator('iframe.explorer').locator('#here').inner_text() == 'the explorer'
