"Several processes must learn what one learns, a dead one must be noticed, and a run must not care how many made it."
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nvs_nb.config import make_config
from nvs_nb.data.clips import load_set
from nvs_nb.training.checkpoint import load_run
from nvs_nb.training.trainer import Trainer

SMALL = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, norm='group', threads=1, batch=8, epochs=10)
CODE = '''
import json, sys
from torch import distributed as dist
from nvs_nb.config import make_config
from nvs_nb.data.clips import load_set
from nvs_nb.training import runtime
from nvs_nb.training.trainer import Trainer
device = runtime.join('cpu')
what = json.loads(sys.argv[1])
clips = load_set(what['dataset'], size=32, frames=what.get('frames', 16))
kw = dict(device=device, progress=False, log_every=what.get('log_every', 1))
if what.get('resume'): t = Trainer.resume(what['run'], clips, **kw)
else: t = Trainer(make_config(what['dataset'], **what['config']), clips, what['run'], **kw)
said, reduce = [], dist.all_reduce
dist.all_reduce = lambda *a, **k: (said.append(a[0].numel()), reduce(*a, **k))[1]
t.fit(until=what.get('until'))
if runtime.rank() == 0: print('SAID', len(said), t.step)
runtime.leave()
'''
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}


def torchrun(*args, n=2):
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}', *map(str, args)]


@pytest.fixture
def several(tmp_path):
    (tmp_path / 'several.py').write_text(CODE)
    def go(n, **what):
        command = torchrun(tmp_path / 'several.py', json.dumps(what), n=n)
        done = subprocess.run(command, capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr[-3000:]
        return [int(x) for x in done.stdout.partition('SAID')[2].split()[:2]]
    return go


def curve(run, keys=('loss', 'psnr', 'triplet', 'lr')):
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return torch.tensor([[line[k] for k in keys] for line in lines])


def alike(a, b, tol=2e-2):
    "The same weights and codes up to rounding, of which Adam makes much where gradients are nearly zero"
    for name, w in load_run(a)[0].state_dict().items():
        v = load_run(b)[0].state_dict()[name]
        if not w.is_floating_point(): continue
        assert (w - v).norm() <= tol * w.norm() + 1e-6, (name, ((w - v).norm() / w.norm()).item())


CASES = {  # batches of 6 or 7 clips for 2 and 3 processes: the parts are not equal
    'a code per clip': (2, 'chairs', dict(preset='fast')),
    'three processes': (3, 'chairs', dict(preset='fast', batch=7)),
    'shared codes': (2, 'actors', dict(preset='fast', static_ids='dataset', transient_ids='dataset', rank=2, epochs=5)),
    'sparse': (3, 'chairs', dict(preset='fast', latent_opt='sparse_adam', batch=7)),
    'paper': (2, 'actors', dict(preset='paper', batch=18, lr_z=1e-2, epochs=4))}


@pytest.mark.parametrize('case', CASES)
def test_several_processes_learn_what_one_learns(several, tmp_path, case):
    n, name, changes = CASES[case]
    config = {**SMALL, **changes}
    Trainer(make_config(name, **config), load_set(name, size=32), tmp_path / 'one', device='cpu', progress=False,
            log_every=1).fit()
    several(n, dataset=name, run=str(tmp_path / 'many'), config=config)
    one, many = curve(tmp_path / 'one'), curve(tmp_path / 'many')
    assert one.shape == many.shape and len(one) > 5
    assert torch.allclose(one, many, rtol=1e-3, atol=1e-4), (one - many).abs().max(0)
    alike(tmp_path / 'one', tmp_path / 'many')


def test_nothing_but_gradients_is_said_in_a_step(several, tmp_path):
    "One message a step for the gradients; stopping, time and metrics every ten steps"
    said, steps = several(2, dataset='chairs', run=str(tmp_path / 'run'), config={**SMALL, 'epochs': 20}, log_every=10)
    assert steps == 60 and steps <= said <= steps + 3 * (steps // 10 + 1)


def test_a_baseline_trains_in_two_processes(several, tmp_path):
    config = dict(model='vgan', size=32, frames=8, width=16, d_width=8, batch=9, epochs=3, threads=1)
    several(2, dataset='chairs', frames=8, run=str(tmp_path / 'run'), config=config)
    assert curve(tmp_path / 'run', ('discriminator', 'generator')).isfinite().all()


def test_resumed_by_another_number_of_processes(several, tmp_path):
    config, chairs = {**SMALL, 'batch': 18, 'epochs': 24}, load_set('chairs', size=32)
    one = dict(device='cpu', progress=False, log_every=1)
    Trainer(make_config('chairs', **config), chairs, tmp_path / 'one', **one).fit()
    several(2, dataset='chairs', run=str(tmp_path / 'cut'), config=config, until=7)
    assert load_run(tmp_path / 'cut')[3]['trainer']['step'] == 7
    several(3, dataset='chairs', run=str(tmp_path / 'cut'), resume=True, until=15)
    Trainer.resume(tmp_path / 'cut', chairs, **one).fit()
    assert torch.allclose(curve(tmp_path / 'one'), curve(tmp_path / 'cut'), rtol=1e-3, atol=1e-4)
    alike(tmp_path / 'one', tmp_path / 'cut')


def start(run, **changes):
    settings = [f'--set={k}={v}' for k, v in {**SMALL, 'epochs': 10**6, **changes}.items()]
    return subprocess.Popen(
        torchrun('-m', 'nvs_nb.cli', 'train', 'chairs', '--name', run.name, '--runs', run.parent, '--device', 'cpu',
                 *settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)


def workers(p):
    "Process numbers by rank"
    out = {}
    for line in subprocess.run(['ps', '-eo', 'pid,ppid'], capture_output=True, text=True).stdout.splitlines()[1:]:
        pid, parent = map(int, line.split())
        if parent == p.pid:
            env = dict(x.partition('=')[::2] for x in open(f'/proc/{pid}/environ').read().split('\0'))
            if 'RANK' in env: out[int(env['RANK'])] = pid
    return out


linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')


def running(run):
    "A run in two processes that has taken some steps"
    p, end = start(run), time.monotonic() + 120
    while not (run / 'metrics.jsonl').exists():
        assert time.monotonic() < end and p.poll() is None, p.communicate()
        time.sleep(.1)
    return p


@linux
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_worker_ends_the_run_with_a_message(tmp_path, victim):
    run = tmp_path / 'run'
    p = running(run)
    try:
        os.kill(workers(p)[victim], signal.SIGKILL)
        out, err = p.communicate(timeout=120)
    finally: p.kill()
    assert p.returncode and 'nvs: another process of this training has died; ' in err, err[-3000:]
    t = Trainer.resume(run, load_set('chairs', size=32), device='cpu', progress=False)
    before = t.step
    assert t.fit(until=before + 2).step == before + 2


@linux
@pytest.mark.parametrize('whom', ['one worker', 'torchrun'])
def test_a_signal_saves_and_ends_all(tmp_path, whom):
    run = tmp_path / 'run'
    p = running(run)
    try:
        os.kill(workers(p)[1] if whom == 'one worker' else p.pid, signal.SIGTERM)
        out, err = p.communicate(timeout=120)
    finally: p.kill()
    assert err.count('stopped at step') == 1, err[-3000:]
    assert load_run(run)[3]['trainer']['step'] > 0


def test_too_little_for_all_is_told_before_anything_is_written(tmp_path):
    p = start(tmp_path / 'run', batch=1)
    out, err = p.communicate(timeout=120)
    assert p.returncode and '2 processes: each needs a clip, but a batch has 1' in err, err[-3000:]
    assert not (tmp_path / 'run').exists()


def test_command_trains_and_scores_once(tmp_path):
    p = start(tmp_path / 'run', epochs=2, batch=9)
    out, err = p.communicate(timeout=180)
    assert p.returncode == 0, err[-3000:]
    assert out.count('clips       18') == 1 and out.count('report      ') == 1
    assert json.loads((tmp_path / 'run/scores.json').read_text())['step'] == 4
    again = subprocess.run(torchrun('-m', 'nvs_nb.cli', 'resume', tmp_path / 'run', '--device', 'cpu'),
                           capture_output=True, text=True, env=ENV)
    assert again.returncode == 0 and again.stdout.count('finished, 4 steps') == 1, again.stderr[-2000:]
