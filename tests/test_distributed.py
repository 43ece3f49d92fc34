"Several processes must learn what one learns, a dead one must be noticed, and a run must not care how many made it."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from nvs_nb.cli import main
from nvs_nb.config import make_config
from nvs_nb.data.clips import load_set
from nvs_nb.training import runtime
from nvs_nb.training.checkpoint import load_run
from nvs_nb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, norm='group', threads=1, batch=8, epochs=10)


def train(environ, dataset, run, config=None, frames=16, log_every=1, until=None):
    "What each process does: train, or go on with a run; how much was said goes to a file."
    os.environ.update(environ)
    device = runtime.join('cpu')
    clips, kw = load_set(dataset, size=32, frames=frames), dict(device=device, progress=False, log_every=log_every)
    t = Trainer(make_config(dataset, **config), clips, run, **kw) if config else Trainer.resume(run, clips, **kw)
    said, reduce = [], dist.all_reduce
    dist.all_reduce = lambda *a, **k: (said.append(a[0].numel()), reduce(*a, **k))[1]
    t.fit(until=until)
    if runtime.rank() == 0: Path(run, 'said').write_text(f'{len(said)} {t.step}')
    runtime.leave()


def command(environ, *args):
    os.environ.update(environ)
    return main([str(a) for a in args])


@pytest.fixture
def together(fork):
    "Start a function in `n` processes that find each other as `torchrun` would have told them."
    def start(n, function, *args):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            port = s.getsockname()[1]
        common = dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
        return [fork(function, {**common, 'RANK': str(i), 'LOCAL_RANK': str(i)}, *args) for i in range(n)]
    return start


def ended(processes): return [p.result(120) for p in processes]


@pytest.fixture
def several(together):
    def go(n, dataset, run, *args, **kw):
        for r in ended(together(n, partial(train, **kw), dataset, str(run), *args)): assert r.code == 0, r.err[-3000:]
        return map(int, Path(run, 'said').read_text().split())
    return go


def curve(run, keys=('loss', 'psnr', 'triplet', 'lr')):
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return torch.tensor([[line[k] for k in keys] for line in lines])


def alike(a, b, tol=5e-2):
    "The same weights and codes up to rounding, of which Adam and Muon make much where gradients are nearly zero"
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
    several(n, name, tmp_path / 'many', config)
    one, many = curve(tmp_path / 'one'), curve(tmp_path / 'many')
    assert one.shape == many.shape and len(one) > 5
    assert torch.allclose(one, many, rtol=1e-3, atol=1e-4), (one - many).abs().max(0)
    alike(tmp_path / 'one', tmp_path / 'many')


def test_nothing_but_gradients_is_said_in_a_step(several, tmp_path):
    "One message a step for the gradients; stopping, time and metrics every ten steps"
    said, steps = several(2, 'chairs', tmp_path / 'run', {**SMALL, 'epochs': 20}, log_every=10)
    assert steps == 60 and steps <= said <= steps + 3 * (steps // 10 + 1)


def test_a_baseline_trains_in_two_processes(several, tmp_path):
    config = dict(model='vgan', size=32, frames=8, width=16, d_width=8, batch=9, epochs=3, threads=1)
    several(2, 'chairs', tmp_path / 'run', config, frames=8)
    assert curve(tmp_path / 'run', ('discriminator', 'generator')).isfinite().all()


def test_resumed_by_another_number_of_processes(several, tmp_path):
    config, chairs = {**SMALL, 'batch': 18, 'epochs': 24}, load_set('chairs', size=32)
    one = dict(device='cpu', progress=False, log_every=1)
    Trainer(make_config('chairs', **config), chairs, tmp_path / 'one', **one).fit()
    several(2, 'chairs', tmp_path / 'cut', config, until=7)
    assert load_run(tmp_path / 'cut')[3]['trainer']['step'] == 7
    several(3, 'chairs', tmp_path / 'cut', until=15)
    Trainer.resume(tmp_path / 'cut', chairs, **one).fit()
    assert torch.allclose(curve(tmp_path / 'one'), curve(tmp_path / 'cut'), rtol=1e-3, atol=1e-4)
    alike(tmp_path / 'one', tmp_path / 'cut')


def arguments(run, **changes):
    settings = [f'--set={k}={v}' for k, v in {**SMALL, 'epochs': 10**6, **changes}.items()]
    return 'train', 'chairs', '--name', run.name, '--runs', run.parent, '--device', 'cpu', *settings


def running(run, processes):
    "Wait until a run has taken some steps"
    end = time.monotonic() + 120
    while not (run / 'metrics.jsonl').exists():
        assert time.monotonic() < end and all(p.poll() is None for p in processes), [p.result(1) for p in processes]
        time.sleep(.05)
    return processes


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_worker_ends_the_run_with_a_message(together, tmp_path, victim):
    run = tmp_path / 'run'
    processes = running(run, together(2, command, *arguments(run)))
    processes[victim].send_signal(signal.SIGKILL)
    other = ended(processes)[1 - victim]
    assert other.code and 'nvs: another process of this training has died; ' in other.err, other.err[-3000:]
    t = Trainer.resume(run, load_set('chairs', size=32), device='cpu', progress=False)
    before = t.step
    assert t.fit(until=before + 2).step == before + 2


def test_a_signal_to_one_saves_and_ends_all(together, tmp_path):
    run = tmp_path / 'run'
    processes = running(run, together(2, command, *arguments(run)))
    processes[1].send_signal(signal.SIGTERM)
    assert sum(r.err.count('stopped at step') for r in ended(processes)) == 1
    assert load_run(run)[3]['trainer']['step'] > 0


def test_too_little_for_all_is_told_before_anything_is_written(together, tmp_path):
    results = ended(together(2, command, *arguments(tmp_path / 'run', batch=1)))
    assert all(r.code for r in results)
    assert any('2 processes: each needs a clip, but a batch has 1' in r.err for r in results), results
    assert not (tmp_path / 'run').exists()


def test_command_trains_and_scores_once(together, tmp_path):
    results = ended(together(2, command, *arguments(tmp_path / 'run', epochs=2, batch=9)))
    assert [r.code for r in results] == [0, 0], [r.err[-3000:] for r in results]
    out = ''.join(r.out for r in results)
    assert out.count('clips       18') == 1 and out.count('report      ') == 1
    assert json.loads((tmp_path / 'run/scores.json').read_text())['step'] == 4
    results = ended(together(2, command, 'resume', tmp_path / 'run', '--device', 'cpu'))
    assert [r.code for r in results] == [0, 0] and ''.join(r.out for r in results).count('finished, 4 steps') == 1


@pytest.mark.slow
def test_torchrun(tmp_path):
    "Its own way to start and to end processes: with a signal to it, all is saved"
    run = tmp_path / 'run'
    call = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '-m', 'nvs_nb.cli']
    p = subprocess.Popen([*call, *map(str, arguments(run))], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        running(run, [p])
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=120)
    finally: p.kill()
    assert err.count('stopped at step') == 1, err[-3000:]
    assert load_run(run)[3]['trainer']['step'] > 0
