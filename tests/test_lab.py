"JupyterLab, as `make lab` opens it: every picture is there, and notebooks with widgets run from top to bottom."
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOKEN = 'a-token-of-these-tests'
SETTINGS = {'@jupyterlab/notebook-extension/tracker': dict(windowingMode='none'),  # all cells are on the page
            '@jupyterlab/apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False)}

PROMPTS = 'Array.from(document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")).map(x => x.textContent)'
SHOWN = 'Array.from(document.querySelectorAll(".jp-OutputArea img, .widget-image")).map(x => x.src).join()'


def lab_command():
    "What `make lab` runs, with this Python and for a copy of the project"
    lines = (ROOT / 'Makefile').read_text(encoding='utf-8')
    line = re.search(r'^lab:.*\n\t(.*)$', lines, re.M)[1]
    return shlex.split(line.replace('$(BIN)/jupyter', f'{shlex.quote(sys.executable)} -m jupyter'))


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "The address of a JupyterLab that runs on a copy of the project, and that copy"
    pytest.importorskip('jupyterlab', reason="no JupyterLab: pip install '.[notebook]'")
    top = tmp_path_factory.mktemp('lab')
    copy, config = top / 'project', top / 'config'
    ignore = shutil.ignore_patterns('.*', '__pycache__', 'runs')
    for name in ('nbs', 'nvs_nb', 'data'): shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ('settings.ini', 'README.md', 'LICENSE'): shutil.copy(ROOT / name, copy)
    for name, values in SETTINGS.items():
        path = config / 'settings' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding='utf-8')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    more = ['--no-browser', f'--ServerApp.port={port}', '--ServerApp.ip=127.0.0.1', f'--IdentityProvider.token={TOKEN}',
            '--ServerApp.port_retries=0', '--ServerApp.allow_root=True', '--LabApp.expose_app_in_browser=True']
    env = {**os.environ, 'JUPYTER_CONFIG_DIR': str(config), 'JUPYTERLAB_SETTINGS_DIR': str(config / 'settings'),
           'JUPYTERLAB_WORKSPACES_DIR': str(top / 'workspaces'), 'JUPYTER_RUNTIME_DIR': str(top / 'runtime'),
           'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}', 'PYTHONPATH': str(copy),
           'OMP_NUM_THREADS': '1'}
    command = [x.replace('$(CURDIR)', str(copy)) for x in lab_command()]
    log = (top / 'log.txt').open('w')
    server = subprocess.Popen([*command, *more], cwd=copy, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f'http://127.0.0.1:{port}'
    try:
        for _ in range(600):
            assert server.poll() is None, (top / 'log.txt').read_text()[-3000:]
            try:
                urllib.request.urlopen(f'{address}/api/status?token={TOKEN}', timeout=5).close()
                break
            except OSError: time.sleep(.2)
        yield address, copy
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()
        log.close()


@pytest.fixture
def open_notebook(browser, lab):
    "Open a notebook of the copy in JupyterLab"
    contexts = []
    def go(name):
        contexts.append(browser.new_context(viewport=dict(width=1400, height=1000)))
        page = contexts[-1].new_page()
        page.goto(f'{lab[0]}/lab/tree/{name}?token={TOKEN}')
        page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=120_000)
        return page
    yield go
    for c in contexts: c.close()


def broken(page):
    "Addresses of pictures that do not show"
    return page.evaluate('Array.from(document.querySelectorAll(".jp-Notebook img"))'
                         '.filter(i => i.complete && !i.naturalWidth).map(i => i.getAttribute("src").slice(0, 200))')


def test_make_lab_begins_with_the_index():
    *_, option, name = lab_command()
    assert option == '--ServerApp.root_dir=$(CURDIR)' and (ROOT / name) == ROOT / 'nbs/index.ipynb'


@pytest.mark.slow
def test_make_lab_has_the_project_as_its_root(lab):
    with urllib.request.urlopen(f'{lab[0]}/api/contents?token={TOKEN}') as answer: names = json.load(answer)['content']
    assert {'nbs', 'nvs_nb', 'data', 'README.md'} <= {x['name'] for x in names}


@pytest.mark.slow
def test_pictures_of_real_results_show(open_notebook):
    page = open_notebook('nbs/5_baselines/04_mocogan.ipynb')
    page.wait_for_function('document.querySelectorAll(".jp-Notebook img").length > 2', timeout=60_000)
    page.wait_for_function('Array.from(document.querySelectorAll(".jp-Notebook img")).every(i => i.complete)')
    assert broken(page) == []


@pytest.mark.slow
@pytest.mark.parametrize('name, widgets', [('3_paper/12_exchange', False), ('3_paper/13_interpolation', True)])
def test_run_all(open_notebook, lab, name, widgets):
    "Run All ends without an error, and a widget, if there is one, changes what is shown"
    page, path = open_notebook(f'nbs/{name}.ipynb'), lab[1] / f'nbs/{name}.ipynb'
    page.locator('.jp-Toolbar-kernelName, .jp-KernelName').filter(has_text='Python 3').first.wait_for(timeout=120_000)
    page.evaluate('jupyterapp.shell.currentWidget.sessionContext.ready')
    assert not page.locator('.jp-Dialog').count()  # it opens with its kernel, and asks nothing
    page.evaluate('jupyterapp.commands.execute("notebook:run-all-cells")')  # as the menu does; returns at the end
    page.wait_for_function(f'!{PROMPTS}.some(x => x.includes("*"))', timeout=60_000)
    assert broken(page) == []
    assert page.locator('.jupyter-widgets').count() or not widgets
    if page.locator('.jupyter-widgets').count():
        before = page.evaluate(SHOWN)
        change(page)
        page.wait_for_function(f'before => {SHOWN} != before', arg=before, timeout=60_000)
    page.evaluate('jupyterapp.commands.execute("docmanager:save")')
    cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    assert not [o['evalue'] for c in cells for o in c['outputs'] if o['output_type'] == 'error']
    assert all(c['execution_count'] for c in cells if ''.join(c['source']).strip())


def change(page):
    "Choose the next value of the first list, else move the first slider"
    lists = page.locator('.widget-dropdown select')
    if lists.count():
        options = lists.first.locator('option').all_inner_texts()
        return lists.first.select_option(options[1])
    handle = page.locator('.noUi-handle').first
    handle.focus()
    for _ in range(3): handle.press('ArrowRight')
