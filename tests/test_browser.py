"The page of a run in a real browser: it fits, it plays, it sorts, and a name stays a name."
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import use_small_vgg

from nvs_nb.config import make_config
from nvs_nb.data.clips import load_clips
from nvs_nb.evaluation import perceptual, report, samples
from nvs_nb.models.build import build_model

EVIL = ['<script>document.title = "taken"</script>', '<img src=x onerror="document.title = \'taken\'">',
        '"><video src=x onerror=alert(1)>', "javascript:alert(1)//'`${1}`", '</script></style><h1 id=evil>big</h1>',
        'a very long name without any place to break it ' + 'x'*200, '\u202egnp.exe', 'l\u00f6wen & b\u00e4ren']


def written(folder, model='nvs'):
    "The report of a model that has learnt nothing, about eight clips of whose names none is harmless."
    c = make_config('chairs', size=32, frames=8, width=16, precision='fp32',
                    **(dict(levels=3, hidden=16) if model == 'nvs' else dict(model=model)))
    clips = replace(load_clips(c).subset(slice(8)), names=EVIL, skipped=[f'{n}: too short' for n in EVIL])
    torch.manual_seed(0)
    report.finish(folder, build_model(c, clips.S, clips.T), c, clips)
    return Path(folder)/'report.html'


@pytest.fixture(scope='module')
def reports(browser, tmp_path_factory):
    "For two models the report alone, away from its folder."
    top, pages = tmp_path_factory.mktemp('reports'), {}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(samples.evaluate_run, '__defaults__', (None, False, 6))  # not 200 samples
        m.setattr(perceptual, 'PAIRS', 2), use_small_vgg(m)
        for model in ('nvs', 'vgan'):
            pages[model] = shutil.copy(written(top/'runs'/model, model), top/f'{model}.html')
    shutil.rmtree(top/'runs')
    return pages


@pytest.fixture
def open_page(browser):
    """Open a file: `open_page(path, width, scheme)` gives a Playwright `Page`. The test fails in the end if the page has
    written an error to the console that does not contain `expect`, or asked for anything but itself, blob: and data:."""
    contexts, wrong = [], []
    def start(where, width=1280, scheme='light', expect=None, **kw):
        address = Path(where).resolve().as_uri()
        contexts.append(browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme, **kw))
        page = contexts[-1].new_page()
        page.on('pageerror', lambda e: wrong.append(f'error: {e}'))
        def heard(m):
            if m.type in ('error', 'warning') and not (expect and expect in m.text): wrong.append(f'{m.type}: {m.text}')
        page.on('console', heard)
        fine = address, 'data:', 'blob:'
        page.on('request', lambda r: wrong.append(f'request: {r.url[:200]}') if not r.url.startswith(fine) else None)
        page.goto(address)
        return page
    yield start
    for c in contexts: c.close()
    assert not wrong, wrong


def settled(page):
    "Wait until every film that is seen has its first frame."
    page.evaluate("""() => Promise.all([...document.querySelectorAll('video')].map(v =>
        v.readyState >= 2 || new Promise(done => v.addEventListener('loadeddata', done))))""")


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('model', ['nvs', 'vgan'])
def test_page_fits(model, width, scheme, reports, open_page):
    "No horizontal overflow, also with every fold open; text can be read on its ground; nothing stands above another"
    page = open_page(reports[model], width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    settled(page)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    wide = page.evaluate("""w => [...document.querySelectorAll('main > section, header, nav, figure, .wide, pre, h2, p')]
        .filter(e => { const box = e.getBoundingClientRect(); return box.right > w || box.left < 0 })
        .map(e => e.outerHTML)""", width)
    assert not wide
    light = lambda what: page.evaluate("""what => getComputedStyle(document.body)[what].match(/\\d+/g).slice(0, 3)
        .reduce((a, b) => a + +b, 0) / 3""", what)
    assert (light('backgroundColor') > 200 > 100 > light('color')) == (scheme == 'light')
    assert (light('backgroundColor') < 60 and light('color') > 200) == (scheme == 'dark')


def test_first_things_first(reports, open_page):
    "In one minute stands above everything; every link of the contents leads to a heading, and to each there is one"
    page = open_page(reports['nvs'])
    assert page.locator('main h2').first.inner_text() == 'In one minute'
    assert page.locator('.verdict').inner_text().startswith('Nothing learnt yet')
    assert page.locator('.number').count() == 3 and page.locator('.number .bar').count() == 9
    targets = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))")
    assert len(targets) > 7
    assert targets == page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    page.locator('nav a[href="#scores"]').click()
    assert page.evaluate("Math.abs(document.getElementById('scores').getBoundingClientRect().top) < 200")


def test_films_play_and_go_frame_by_frame(reports, open_page):
    page = open_page(reports['nvs'])
    settled(page)
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => !v.error && v.videoWidth >= v.width)")
    page.evaluate("""() => new Promise(done => { const v = document.querySelector('video')
        v.ontimeupdate = () => v.currentTime > 0 && done() })""")  # it plays by itself
    film = page.locator('.film').first
    film.get_by_role('button', name='Pause').click()
    assert page.evaluate("document.querySelector('video').paused")
    seen = """async k => {  // the picture of frame k, by way of the slider
        const v = document.querySelector('video'), s = document.querySelector('input')
        const there = new Promise(done => v.addEventListener('seeked', done, { once: true }))
        const drawn = new Promise(done => v.requestVideoFrameCallback(done))
        s.value = k, s.dispatchEvent(new Event('input'))
        await there
        await Promise.race([drawn, new Promise(done => setTimeout(done, 500))])  // none is drawn if it stood there
        const c = Object.assign(document.createElement('canvas'), { width: v.videoWidth, height: v.videoHeight })
        c.getContext('2d').drawImage(v, 0, 0)
        return c.toDataURL()
    }"""
    first, sixth, again = (page.evaluate(seen, k) for k in (1, 6, 1))
    assert first == again != sixth
    assert film.locator('output').inner_text() == 'frame 1 of 8'
    film.get_by_role('button', name='Play').click()
    assert not page.evaluate("document.querySelector('video').paused")


def test_three_times_as_wide(reports, open_page):
    "On a phone a wide film can be seen pixel by pixel, and the page stays as wide as it is"
    page = open_page(reports['nvs'], 390)
    film = page.locator('.film').nth(1)
    film.scroll_into_view_if_needed()
    video = film.locator('video')
    width = lambda: video.evaluate('v => [v.clientWidth, 3*v.width, getComputedStyle(v).imageRendering]')
    assert width()[0] < width()[1]
    film.get_by_role('button', name='3×').click()
    assert width()[0] == width()[1] and width()[2] == 'pixelated'
    assert page.evaluate('document.documentElement.scrollWidth') == 390


def test_still_where_motion_is_not_wanted(reports, open_page):
    page = open_page(reports['nvs'], reduced_motion='reduce')
    settled(page)
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused && v.currentTime === 0)")
    page.get_by_role('button', name='Play').first.click()
    assert not page.evaluate("document.querySelector('video').paused")


def test_tables_sort(reports, open_page):
    page = open_page(reports['nvs'])
    table = page.locator('#every-clip-worst-first table')
    column = lambda i: table.locator(f'tbody td:nth-child({i})').all_inner_texts()
    rows = sorted(zip(column(1), column(2)))
    key = lambda i, down: [float(x) for x in column(i)] == sorted((float(x) for x in column(i)), reverse=down)
    assert key(2, False) and table.locator('th').nth(1).evaluate('t => getComputedStyle(t).textAlign') == 'right'
    for i, down in ((2, True), (2, False), (4, True), (2, True)):
        table.get_by_role('columnheader').nth(i - 1).get_by_role('button').click()
        assert key(i, down), i
        state = table.locator('th').evaluate_all('ts => ts.map(t => t.ariaSort)')
        assert [s for s in state if s] == ['descending' if down else 'ascending'] and state[i - 1]
    table.get_by_role('columnheader').first.get_by_role('button').click()
    assert sorted(zip(column(1), column(2))) == rows and column(1) != [n for n, _ in rows][::-1]


def test_names_stay_text(reports, open_page):
    "They are shown letter for letter, nothing of them runs, and nothing is loaded"
    for model in reports:
        page = open_page(reports[model])
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.title() == f'{model}: 8 clips of chairs' and page.locator('#evil').count() == 0
        text = page.locator('body').inner_text()
        assert not [n for n in EVIL if n.replace('\u202e', '\\u202e') not in text]
        inside = page.evaluate("""() => [document.scripts.length, document.images.length, document.querySelectorAll(
            '[src]:not([src^="data:"]):not([src^="blob:"]), [href]:not([href^="#"])').length]""")
        assert inside[0] == 1 and inside[1] >= 2 and inside[2] == 0


def test_scripts_of_others_do_not_run(reports, tmp_path, open_page):
    "Should markup ever get through, the policy of the page still refuses it"
    text = Path(reports['nvs']).read_text(encoding='utf-8')
    bad = '</main><script>document.title = "taken"</script><b id=here onclick="document.title = 1">x</b>'
    (tmp_path/'bad.html').write_text(text.replace('</main>', bad, 1), encoding='utf-8')
    page = open_page(tmp_path/'bad.html', expect='Content Security Policy')
    page.locator('#here').click()
    assert page.title() == 'nvs: 8 clips of chairs'
    assert page.locator('.keys').count() > 3  # ours has run
