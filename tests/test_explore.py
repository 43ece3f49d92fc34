"""The ONNX file against PyTorch, and the page in a browser: from a file, without a network, on a telephone and a desk.

The engine is two files of the npm package onnxruntime-web: PYTEST_ORT names its folder, else it is looked for in
node_modules; tests that need it are skipped where it is not.
"""
import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from nvs_nb.cli import main
from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips
from nvs_nb.evaluation import explore
from nvs_nb.models.build import build_model
from nvs_nb.models.nvs import generate
from nvs_nb.training.checkpoint import describe_clips, open_run, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(size=32, frames=4, width=16, hidden=8, d_s=6, d_t=5)


@pytest.fixture(scope='module')
def packages():
    for name in ('onnx', 'onnxscript'): pytest.importorskip(name, reason="no onnx: pip install 'nvs_nb[explore]'")


def small_run(folder, dataset='chairs', **changes):
    "An untrained run of a small model, as a checkpoint."
    ids = dict(static_ids='dataset', transient_ids='dataset') if dataset == 'actors' else {}
    c = make_config(dataset, **SMALL | ids | changes)
    clips = load_clips(c)
    about = describe_clips(clips)
    model = build_model(c, len(about['static_names']), len(about['transient_names']))
    save_checkpoint(folder/'checkpoint.pt', model.state_dict(), c, about)
    return open_run(folder)


def data_of(path):
    "What the page knows."
    return json.loads(re.search(r'id="data">(.*?)</script>', Path(path).read_text(encoding='utf-8'), re.S)[1])


def numbers(text): return np.frombuffer(gzip.decompress(base64.b64decode(text)), '<f2').astype(float)


# ---- the file

@pytest.mark.parametrize('codes, changes', [
    (False, {}), (False, dict(label='static', norm='none', hidden=0)),
    (True, dict(label='transient', style=True, norm='group')), (True, dict(output='linear'))], ids=str)
def test_onnx_draws_what_pytorch_draws(packages, tmp_path, codes, changes):
    onnxruntime = pytest.importorskip('onnxruntime', reason='no onnxruntime')
    model = small_run(tmp_path, 'actors', **changes).model
    data, far = explore.to_onnx(model, codes)
    assert far < explore.CHECK
    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
    s, t = np.array([0, 5, 2, 2, 1]), np.array([3, 0, 1, 5, 5])
    if codes: return
    frames, z_s, r = session.run(None, dict(static_id=s, transient_id=t))
    drawn = ((frames + 1) * 127.5).clip(0, 255).round().transpose(0, 1, 3, 4, 2)
    assert np.abs(drawn - generate(model, s, t)).max() <= 1
    assert z_s.shape == (5, 6) and r.shape == (5, 4, 5)


def test_a_wrong_export_is_refused(packages, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime', reason='no onnxruntime')
    (tmp_path/'other').mkdir()
    other, _ = explore.to_onnx(small_run(tmp_path/'other', seed=1).model, True)
    def export(graph, some, file, dynamic_shapes, **kw): file.write(other)
    monkeypatch.setattr(torch.onnx, 'export', export)
    with pytest.raises(NvsError, match='frames that are'): explore.to_onnx(small_run(tmp_path).model, True)


def test_export_command(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path/'run')
    assert main(['export', 'run', 'a.onnx']) == 0 and Path('a.onnx').stat().st_size > 10000
    assert 'takes       static_id (N), transient_id (N)' in capsys.readouterr().out
    for words, told in ((['run', 'a.onnx'], 'is there already'), (['run', 'a.txt'], 'name it so'),
                        (['nothing', 'b.onnx'], 'no such run')):
        assert main(['export', *words]) == 2
        err = capsys.readouterr().err
        assert told in err and err.count('\n') == 1


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    small_run(tmp_path/'run')
    assert main(['export', 'run', 'a.onnx']) == 2
    assert "pip install 'nvs_nb[explore]'" in capsys.readouterr().err and not Path('a.onnx').exists()


# ---- the page, without a browser

@pytest.fixture
def no_net(monkeypatch):
    "The network of the page as some bytes: an export takes seconds."
    monkeypatch.setattr(explore, 'to_onnx', lambda *args, **kw: (b'net', 0.))


def test_what_the_page_knows(no_net, tmp_path):
    run = small_run(tmp_path, 'actors')
    d = data_of(explore.write_explorer(run, tmp_path/'page', load_clips(run.config)))
    pairs = {*zip(run.about['static_id'], run.about['transient_id'])}
    assert {(c['s'], c['t']) for c in d['clips']} == pairs == {tuple(p) for p in d['matrix']['trained']}
    z_s, r = run.model.codes(torch.tensor([0]), torch.tensor([2]))
    close = lambda a, b: np.allclose(a, b.detach().flatten(), atol=2e-3)
    assert close(numbers(d['static']).reshape(d['S'], -1)[0], z_s)
    assert close(numbers(d['path']).reshape(d['T'], -1)[2], r)
    n, K = d['prior']['n'], d['prior']['K']
    y, mean, basis = (numbers(d['prior'][k]) for k in ('y', 'mean', 'basis'))
    assert n == len(pairs) and len(numbers(d['prior']['std'])) == K and basis.size == K * mean.size
    back = mean + y.reshape(n, K) @ basis.reshape(K, -1)  # points of the cloud are clips, but for 1 % of the variance
    codes = np.concatenate([x.detach().flatten(1) for x in run.model.codes(
        *(torch.tensor(run.about[k]) for k in ('static_id', 'transient_id')))], 1)
    assert ((back - codes)**2).sum() < .03 * ((codes - codes.mean(0))**2).sum()
    assert d['original'] and all(c['psnr'] > 0 for c in d['clips'])
    assert {*d['sheets']} == {'fake', 'real', 'fresh', 'matrix'}


def test_originals_are_shown_only_where_they_may_be(no_net, tmp_path):
    run = small_run(tmp_path)
    d = data_of(explore.write_explorer(run, tmp_path/'page'))
    assert not d['original'] and 'real' not in d['sheets'] and 'psnr' not in d['clips'][0] and 'matrix' not in d


def test_names_cannot_break_out(no_net, tmp_path):
    run = small_run(tmp_path)
    evil = '</script><img src=x onerror=alert(1)>\u2028"{% raw %}'
    run.about['names'][0] = evil
    path = explore.write_explorer(run, tmp_path/'page', title=evil)
    page = path.read_text(encoding='utf-8')
    assert '<img src=x' not in page and data_of(path)['clips'][0]['name'].startswith('</script><img src=x')


def test_some_of_many_clips(no_net, tmp_path):
    d = data_of(explore.write_explorer(small_run(tmp_path), tmp_path/'page', most=5))
    assert [c['name'] for c in d['clips']][::4] == ['armchair_001', 'winchester-armchair_139'] and d['all'] == 18
    assert (d['S'], d['T'], d['prior']['n']) == (5, 5, 5)


def test_engine_of_another_version_is_refused(tmp_path, monkeypatch):
    assert explore.find_ort() is None
    with pytest.raises(NvsError, match='--ort .*no ort.wasm'): explore.find_ort(tmp_path)
    for name in explore.ENGINE: (tmp_path/name).write_bytes(b'another')
    with pytest.raises(NvsError, match='is not that of onnxruntime-web'): explore.find_ort(tmp_path)
    monkeypatch.setattr(explore, 'ENGINE', dict.fromkeys(explore.ENGINE, hashlib.sha256(b'another').hexdigest()))
    (tmp_path/'npm').mkdir()
    shutil.copytree(tmp_path, tmp_path/'npm/dist', ignore=shutil.ignore_patterns('npm'))
    assert explore.find_ort(tmp_path) == explore.find_ort(str(tmp_path/'npm')) == [b'another'] * 2


def test_engine_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv('NVS_CACHE', str(tmp_path/'cache'))
    (tmp_path/'there').mkdir()
    for name in explore.ENGINE: (tmp_path/'there'/name).write_bytes(name.encode())
    monkeypatch.setattr(explore, 'ENGINE', {n: hashlib.sha256(n.encode()).hexdigest() for n in explore.ENGINE})
    with explore.server_of(tmp_path/'there') as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(explore, 'CDN', f'http://127.0.0.1:{server.server_address[1]}/')
        assert explore.find_ort('download') == [n.encode() for n in explore.ENGINE]
        server.shutdown()
    assert explore.find_ort('download') == explore.find_ort() == [n.encode() for n in explore.ENGINE]  # from the cache


def test_explore_command(no_net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path/'run')
    assert main(['explore', 'run']) == 0 == main(['explore', 'run'])  # ours may be written again
    assert 'fetched when the page is opened' in capsys.readouterr().out
    assert 'onnxruntime-web@' + explore.ORT in (tmp_path/'run/explore/index.html').read_text(encoding='utf-8')
    Path('mine').mkdir()
    Path('mine/index.html').write_text('mine')
    assert main(['explore', 'run', '--out', 'mine']) == 2
    assert 'we did not make it' in capsys.readouterr().err and Path('mine/index.html').read_text() == 'mine'
    def interrupted(server): raise KeyboardInterrupt
    monkeypatch.setattr(explore.ThreadingHTTPServer, 'serve_forever', interrupted)
    assert main(['explore', 'run', '--serve']) == 0
    assert re.search(r'http://127\.0\.0\.1:\d+/', capsys.readouterr().out)


# ---- the page in a browser

@pytest.fixture(scope='module')
def engine():
    where = Path(os.environ.get('PYTEST_ORT') or ROOT/'node_modules/onnxruntime-web')
    if not where.is_dir(): pytest.skip(f'no engine: npm install --no-save onnxruntime-web@{explore.ORT}, or PYTEST_ORT')
    return explore.find_ort(where)


@pytest.fixture(scope='module')
def pages(packages, tmp_path_factory):
    "The page of the shipped run and of small runs, with engines or without; each is written once."
    made = {}
    def page(name, ort=None, originals=True):
        if (name, bool(ort)) not in made:
            folder = tmp_path_factory.mktemp('explore')
            run = open_run('pretrained') if name == 'pretrained' else small_run(folder, name)
            made[name, bool(ort)] = explore.write_explorer(run, folder/'a page', load_clips(run.config), ort)
        return made[name, bool(ort)]
    return page


@pytest.fixture
def visit(browser):
    "Open a page without a network; every message of the console is kept and has to be none."
    contexts, said = [], []
    def go(width=1280, may_fail=False, **kw):
        context = browser.new_context(viewport=dict(width=width, height=800), offline=True, **kw)
        contexts.append(context)
        tab = context.new_page()
        if not may_fail: tab.on('console', lambda m: said.append(m.text))
        tab.on('pageerror', lambda e: said.append(str(e)))
        return tab
    yield go
    for c in contexts: c.close()
    assert not said, said


def opened(tab, path, mode):
    tab.goto(path if isinstance(path, str) else path.as_uri())
    tab.wait_for_selector('body[data-ready]', timeout=120_000)
    found = tab.evaluate('({...document.body.dataset})')
    assert found['mode'] == mode, found
    tab.evaluate('play(false), seek(0)')
    return found


PIXELS = '''id => { const c = document.getElementById(id)
                    return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data] }'''


def picture(tab, name):
    "The pixels of a canvas, once nothing is missing any more."
    tab.locator(f'#{name}').scroll_into_view_if_needed()  # what nobody sees is not drawn
    tab.wait_for_timeout(100)
    for _ in range(400):
        if not tab.evaluate('working'): break
        tab.wait_for_timeout(50)
    return np.array(tab.evaluate(PIXELS, name)).reshape(-1, 4)[:, :3]


def slide(tab, selector, value):
    act = '(e, v) => { e.value = v; e.dispatchEvent(new Event("input", {bubbles: true})) }'
    tab.locator(selector).evaluate(act, str(value))


LABELS = '''() => [...document.querySelectorAll('input, select, button, canvas, img, section, fieldset, table')]
  .filter(e => {
  if (e.offsetParent === null || e.getAttribute('aria-hidden') === 'true') return false
  const by = e.getAttribute('aria-labelledby'), text = x => (x ? x.textContent : '').trim()
  const name = e.getAttribute('aria-label') || (by && text(document.getElementById(by)))
    || (e.labels && [...e.labels].map(text).join('')) || e.alt || (e.matches('button') && text(e))
    || (e.matches('fieldset') && text(e.querySelector('legend')))
  if (e.matches('table')) return !e.querySelector('th[scope]')
  return !name
}).map(e => e.outerHTML.slice(0, 120))'''
SMALL_TARGETS = '''() => [...document.querySelectorAll('button, select, .pick')].filter(e => e.offsetParent && (
  e.getBoundingClientRect().height < 24 || e.getBoundingClientRect().width < 24)).map(e => e.outerHTML.slice(0, 100))'''


def fits(tab):
    assert tab.evaluate('document.documentElement.scrollWidth <= innerWidth')
    assert not tab.evaluate(LABELS) and not tab.evaluate(SMALL_TARGETS)
    assert len(tab.evaluate('[...document.querySelectorAll("h1")].map(e => e.textContent)')) == 1
    ids = tab.evaluate('[...document.querySelectorAll("[id]")].map(e => e.id)')
    assert len(ids) == len({*ids})


def test_the_network_runs_in_the_page(pages, engine, visit, capsys):
    run, tab = open_run('pretrained'), visit()
    ms = float(opened(tab, pages('pretrained', engine), 'network')['ms'])
    with capsys.disabled(): print(f'\nexplorer: {ms:.1f} ms for a clip of the shipped run')
    assert ms < 5000  # a page that stands still; how fast it is, is printed
    fits(tab)
    want = generate(run.model, [0], [0])[0]
    for t in (0, 7, 15):
        tab.evaluate(f'seek({t} * STEPS)')
        assert np.abs(picture(tab, 'right').astype(int) - want[t].reshape(-1, 3)).max() <= 2  # weights have 16 bits
    size = pages('pretrained', engine).stat().st_size
    assert size < 8e6 < 1e7, size


def test_everything_can_be_moved(pages, engine, visit):
    tab = visit()
    opened(tab, pages('pretrained', engine), 'network')
    first = picture(tab, 'right')
    slide(tab, '#time', 9)
    assert tab.inner_text('#told') == 'frame 9 of 16'
    later = picture(tab, 'right')
    assert np.abs(first - later).mean() > 2
    tab.check('#slow')
    slide(tab, '#time', 9.5)
    half = picture(tab, 'right')
    assert np.abs(half - later).mean() > .5 and tab.inner_text('#told') == 'frame 9.5 of 16'
    tab.locator('#gallery input').nth(9).check()
    assert np.abs(picture(tab, 'right') - half).mean() > 5 and 'chair_171' in tab.inner_text('#clip-told')
    slide(tab, '#mix-w', 0)
    a = picture(tab, 'mixed')
    assert np.array_equal(a, picture(tab, 'one'))
    slide(tab, '#mix-w', 100)
    assert np.array_equal(picture(tab, 'mixed'), picture(tab, 'two'))
    tab.check('[name=what][value=static]')
    colour = picture(tab, 'mixed')
    assert not np.array_equal(colour, a) and not np.array_equal(colour, picture(tab, 'two'))
    still = picture(tab, 'walked')
    slide(tab, '#ways input >> nth=0', 3)
    assert np.abs(picture(tab, 'walked') - still).mean() > .5
    tab.click('#walk-0')
    assert np.array_equal(picture(tab, 'walked'), still)


def test_new_clips_are_drawn_and_differ(pages, engine, visit):
    tab = visit()
    opened(tab, pages('pretrained', engine), 'network')
    drawn = [picture(tab, 'drawn')]
    for _ in range(3):
        tab.click('#draw')
        drawn.append(picture(tab, 'drawn'))
    assert all(np.abs(a - b).mean() > .1 for i, a in enumerate(drawn) for b in drawn[:i])
    assert 'New clip number 4' in tab.inner_text('#new-told')
    slide(tab, '#wild', 5)  # almost a learnt clip: its picture says so
    gaps = []
    for _ in range(4):
        tab.click('#draw')
        gaps.append(np.abs(picture(tab, 'drawn') - picture(tab, 'near')).mean())
    assert max(gaps) < 8, gaps


def test_keyboard_alone(pages, engine, visit):
    tab = visit()
    opened(tab, pages('pretrained', engine), 'network')
    for key in ('ArrowRight', 'ArrowRight', 'ArrowLeft'): tab.keyboard.press(key)
    assert tab.inner_text('#told') == 'frame 2 of 16'
    tab.keyboard.press('Space')
    assert tab.inner_text('#play') == 'Pause'
    tab.keyboard.press('Space')
    assert tab.inner_text('#play') == 'Play'
    reached = set()
    for _ in range(40):
        tab.keyboard.press('Tab')
        reached.add(tab.evaluate('document.activeElement.id || document.activeElement.name'))
    wanted = 'clip mix-a mix-b mix-w what walk-a walk-0 draw wild play time slow'
    assert {*wanted.split()} <= reached


def test_engine_from_the_network_is_checked_by_the_browser(pages, engine, visit):
    "The address of the CDN answers with the files, or with one that somebody has changed: then there are films."
    for spoilt in (b'', b' '):
        def answer(route):
            body = engine[route.request.url.endswith('.wasm')] + spoilt
            route.fulfill(body=body, headers={'Access-Control-Allow-Origin': '*'})
        tab = visit(**(dict(may_fail=True) if spoilt else {}))
        tab.route(explore.CDN + '*', answer)
        opened(tab, pages('pretrained'), 'films' if spoilt else 'network')


def test_films_where_webassembly_is_refused(pages, visit):
    tab = visit(390, color_scheme='dark')
    tab.add_init_script('delete window.WebAssembly')
    opened(tab, pages('pretrained'), 'films')
    fits(tab)
    assert 'drawn beforehand' in tab.inner_text('#state') and not tab.is_visible('#mix') and not tab.is_visible('#walk')
    before, new = picture(tab, 'right'), picture(tab, 'drawn')
    slide(tab, '#time', 9)
    assert np.abs(picture(tab, 'right') - before).mean() > 2
    slide(tab, '#time', 1)
    want = generate(open_run('pretrained').model, [0], [0])[0, 0].reshape(-1, 3)
    assert np.abs(before - want).mean() < 4  # what the network would draw, but for the compression
    tab.click('#draw')
    assert np.abs(picture(tab, 'drawn') - new).mean() > 2


def test_matrix_of_who_does_what_in_the_dark_on_a_telephone(pages, engine, visit):
    tab = visit(390, color_scheme='dark', reduced_motion='reduce')
    opened(tab, pages('actors', engine), 'network')
    fits(tab)
    assert tab.inner_text('#play') == 'Play'  # nothing moves by itself
    cells = tab.locator('#cells input')
    d = data_of(pages('actors', engine))
    assert cells.count() == d['S'] * d['T'] and tab.locator('.pick.unseen').count() == cells.count() - len(d['clips'])
    before = picture(tab, 'cell')
    cells.nth(8).check()
    assert np.abs(picture(tab, 'cell') - before).mean() > .01
    assert tab.inner_text('#cell-c').startswith(f'{d["matrix"]["rows"][1]}, {d["matrix"]["columns"][2]}')


def test_served_from_this_machine_only(no_net, tmp_path):
    from urllib.request import urlopen
    explore.write_explorer(small_run(tmp_path), tmp_path/'page')
    with explore.server_of(tmp_path/'page') as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address
        assert host == '127.0.0.1' and b'<canvas' in urlopen(f'http://127.0.0.1:{port}/', timeout=10).read()
        with pytest.raises(NvsError, match=f'--port {port}'): explore.server_of(tmp_path, port)
        server.shutdown()
