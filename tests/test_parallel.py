"Two processes must learn what one learns, a dead one must be noticed, and a run must not care how many made it."
import json, os, signal, subprocess, sys, time
import pytest, torch
from nvs_nb.training.checkpoint import load_run
from nvs_nb.config import make_config
from nvs_nb.data.clips import load_set
from nvs_nb.training.trainer import Trainer

SMALL = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, precision='fp32', threads=1, memory_format='contiguous', batch=9, epochs=12, decay='cosine')
CODE = '''
import json, sys
from nvs_nb.config import make_config
from nvs_nb.data.clips import load_set
from nvs_nb.training.runtime import join
from nvs_nb.training.trainer import Trainer
group, device = join('cpu')
what = json.loads(sys.argv[1])
clips = load_set(what['set'], size=32)
kw = dict(device=device, progress=False, group=group, log_every=1)
if what.get('resume'): t = Trainer.resume(what['run'], clips, **kw)
else: t = Trainer(make_config(what['set'], **what['config']), clips, what['run'], **kw)
t.fit(until=what.get('until'))
group.leave()
'''
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}

def torchrun(*args, n=2): return [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}', *map(str, args)]

@pytest.fixture
def several(tmp_path):
    (tmp_path/'several.py').write_text(CODE)
    def go(n, **what):
        done = subprocess.run(torchrun(tmp_path/'several.py', json.dumps(what), n=n), capture_output=True, text=True, env=ENV)
        assert done.returncode == 0, done.stderr[-3000:]
    return go

def curve(run): return torch.tensor([[json.loads(l)[k] for k in ('loss', 'psnr', 'triplet', 'lr')] for l in (run/'metrics.jsonl').read_text().splitlines()])

def alike(a, b, tol=2e-2):
    "The same weights and codes up to rounding, of which Adam makes much where gradients are nearly zero"
    for name, w in load_run(a)[0].state_dict().items():
        v = load_run(b)[0].state_dict()[name]
        if w.is_floating_point(): assert (w - v).norm() <= tol * w.norm() + 1e-6, (name, ((w - v).norm() / w.norm()).item())

CASES = {'rows of clips': ('chairs', dict(recipe='fast')),                                             # every row belongs to one process
         'shared rows': ('actors', dict(recipe='fast', static_ids='dataset', transient_ids='dataset', rank=2)),  # all rows are copied
         'paper': ('actors', dict(recipe='paper', batch=18, norm='batch', epochs=4)),                   # two stages, labels, SGD
         'released, shared rows': ('actors', dict(recipe='released', repeats=2, batch=18, d_s=6, d_t=5, epochs=4, fresh_optimisers=False, transient_ids='dataset', lambda_t=1.)),
         'released': ('chairs', dict(recipe='released', repeats=2, batch=18, d_s=6, d_t=5, epochs=4, fresh_optimisers=False))}

@pytest.mark.parametrize('case', CASES)
def test_two_processes_learn_what_one_learns(several, tmp_path, case):
    name, changes = CASES[case]
    config = {**SMALL, **changes}
    Trainer(make_config(name, **config), load_set(name, size=32), tmp_path/'one', device='cpu', progress=False, log_every=1).fit()
    several(2, set=name, run=str(tmp_path/'two'), config=config)
    one, two = curve(tmp_path/'one'), curve(tmp_path/'two')
    assert one.shape == two.shape and len(one) > 5
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-4), (one - two).abs().max(0)
    alike(tmp_path/'one', tmp_path/'two')

def test_resumed_by_another_number_of_processes(several, tmp_path):
    config, chairs, one = {**SMALL, 'batch': 18, 'epochs': 24}, load_set('chairs', size=32), dict(device='cpu', progress=False, log_every=1)
    Trainer(make_config('chairs', **config), chairs, tmp_path/'one', **one).fit()
    several(2, set='chairs', run=str(tmp_path/'cut'), config=config, until=7)
    assert load_run(tmp_path/'cut')[3]['trainer']['step'] == 7
    several(3, set='chairs', run=str(tmp_path/'cut'), resume=True, until=15)
    Trainer.resume(tmp_path/'cut', chairs, **one).fit()
    assert torch.allclose(curve(tmp_path/'one'), curve(tmp_path/'cut'), rtol=1e-3, atol=1e-4)
    alike(tmp_path/'one', tmp_path/'cut')

def start(run, **changes):
    settings = [f'--set={k}={v}' for k, v in {**SMALL, 'epochs': 10**6, **changes}.items()]
    return subprocess.Popen(torchrun('-m', 'nvs_nb.cli', 'train', 'chairs', '--name', run.name, '--runs', run.parent, '--device', 'cpu', *settings),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)

def workers(p):
    "Process numbers by rank"
    out = {}
    for line in subprocess.run(['ps', '-eo', 'pid,ppid'], capture_output=True, text=True).stdout.splitlines()[1:]:
        pid, parent = map(int, line.split())
        if parent == p.pid:
            env = dict(x.partition('=')[::2] for x in open(f'/proc/{pid}/environ').read().split('\0'))
            if 'RANK' in env: out[int(env['RANK'])] = pid
    return out

def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(.1)

linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')

def running(run):
    p = start(run)
    wait_for(lambda: (run/'checkpoint.pt').exists())
    time.sleep(1)
    return p

@linux
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_worker_ends_the_run_with_a_message(tmp_path, victim):
    run = tmp_path/'run'
    p = running(run)
    try:
        os.kill(workers(p)[victim], signal.SIGKILL)
        out, err = p.communicate(timeout=90)
    finally: p.kill()
    assert p.returncode and 'nvs: another process of this training has died; last good checkpoint' in err, err[-3000:]
    t = Trainer.resume(run, load_set('chairs', size=32), device='cpu', progress=False)
    before = t.step
    assert t.fit(until=before + 2).step == before + 2

@linux
@pytest.mark.parametrize('whom', ['one worker', 'torchrun'])
def test_a_signal_saves_and_ends_all(tmp_path, whom):
    run = tmp_path/'run'
    p = running(run)
    try:
        os.kill(workers(p)[1] if whom == 'one worker' else p.pid, signal.SIGTERM)
        out, err = p.communicate(timeout=90)
    finally: p.kill()
    assert err.count('stopped at step') == 1, err[-3000:]
    assert load_run(run)[3]['trainer']['step'] > 0

def test_too_little_for_all_is_told_before_anything_is_written(tmp_path):
    p = start(tmp_path/'run', batch=4)
    out, err = p.communicate(timeout=120)
    assert p.returncode and 'batches of at least 9 clips' in err and not (tmp_path/'run').exists(), err[-3000:]

def test_command_trains_and_scores_once(tmp_path):
    p = start(tmp_path/'run', epochs=3)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err[-3000:]
    assert out.count('clips       18') == 1 and out.count('report      ') == 1 and json.loads((tmp_path/'run/scores.json').read_text())['step'] == 6
    again = subprocess.run(torchrun('-m', 'nvs_nb.cli', 'resume', tmp_path/'run', '--device', 'cpu'), capture_output=True, text=True, env=ENV)
    assert again.returncode == 0 and again.stdout.count('finished, 6 steps') == 1, again.stderr[-2000:]

def test_a_streamed_share_is_the_same(tmp_path):
    import numpy as np
    from nvs_nb.training.sampler import Batches
    clips, c = load_set('chairs', size=32), make_config('chairs', **SMALL)
    np.save(tmp_path/'c.npy', clips.frames)
    mapped = load_set('chairs', size=32)
    mapped.frames = np.load(tmp_path/'c.npy', mmap_mode='r')
    mine = np.arange(1, 18, 2)
    kept, streamed = Batches(c, clips, 'cpu', mine), Batches(c, mapped, 'cpu', mine)
    assert kept.resident and not streamed.resident
    for step in (0, 1, 5): assert all(torch.equal(x, y) for x, y in zip(kept(step)[:5], streamed(step)[:5]))
    streamed.close()
