"Nothing in a step waits for the device, statistics are read every k steps, slow and fast versions agree, and the command works."
import json, subprocess, sys
import pytest, torch
from nvs_nb.bench import speed
from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.training.runtime import Replay, Waits, settle
from nvs_nb.training.trainer import Trainer

TINY = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, precision='fp32', threads=1, memory_format='contiguous', epochs=1000)
RECIPES = {'fast': dict(batch=8), 'paper': dict(batch=4), 'released': dict(repeats=2, d_s=6, d_t=5), 'rank': dict(rank=2), 'mse, linear': dict(loss='mse', output='linear')}

def trainer(recipe, device='cpu', n=8, **changes):
    config = make_config('chairs', recipe if recipe in ('paper', 'released') else 'fast', **{**TINY, **RECIPES[recipe], **changes})
    return Trainer(config, speed.noise_clips(n, 32, seed=0), device=device, progress=False)

@pytest.mark.parametrize('recipe', RECIPES)
def test_a_step_asks_the_device_nothing(recipe):
    t = trainer(recipe)
    t.advance()  # the first step makes the optimisers' averages
    with Waits() as waits:
        for _ in range(4): t.advance()
    assert waits.names == []  # the decomposition of `rank` waits on CUDA, inside one operation; see below

def test_statistics_are_read_every_k_steps(monkeypatch):
    t, read, tolist = trainer('fast'), [], torch.Tensor.tolist
    def spy(x):
        read.append(t.step)
        return tolist(x)
    monkeypatch.setattr(torch.Tensor, 'tolist', spy)
    t.log_every = 7
    t.fit(until=30)
    assert read == [7, 14, 21, 28, 30] and [s['step'] for s in t.stats] == read  # the last is that of the checkpoint

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
class TestCuda:
    @pytest.mark.parametrize('recipe', sorted({*RECIPES} - {'rank'}))  # a decomposition waits for its result
    def test_no_synchronisation_within_a_step(self, recipe):
        t = trainer(recipe, 'cuda', capture='no')
        for _ in range(3): t.advance()
        torch.cuda.set_sync_debug_mode('error')
        try:
            for _ in range(6): t.advance()
        finally: torch.cuda.set_sync_debug_mode('default')

    @pytest.mark.parametrize('recipe, changes', [('fast', {}), ('paper', {}), ('fast', dict(resident='no')), ('fast', dict(batch=3)), ('fast', dict(compile=True))])
    def test_a_replayed_step_learns_the_same(self, recipe, changes):
        runs = [trainer(recipe, 'cuda', capture=capture, **changes) for capture in ('no', 'yes')]
        for t in runs:
            for _ in range(20): t.advance()
            t.batches.close()
        a, b = (t.model.state_dict() for t in runs)
        for k in a: assert (a[k].float() - b[k].float()).norm() <= 1e-2 * a[k].float().norm() + 1e-6, k
        assert runs[1].replay.graphs

    def test_a_run_may_change_its_device(self, tmp_path):
        t = trainer('fast', 'cuda')
        t.run = tmp_path
        t.fit(until=10)
        clips = t.clips
        assert Trainer.resume(tmp_path, clips, device='cpu', progress=False).fit(until=12).step == 12
        assert Trainer.resume(tmp_path, clips, device='cuda', progress=False).fit(until=20).step == 20

def test_capture_needs_cuda():
    if torch.cuda.is_available(): pytest.skip('there is CUDA')
    with pytest.raises(NvsError, match='capture=yes needs a CUDA device'): settle(make_config('chairs', capture='yes'), torch.device('cpu'))
    assert settle(make_config('chairs'), torch.device('cpu')).capture == 'no'

def test_a_trainer_may_fit_again_and_stream():
    t = trainer('fast', resident='no')
    t.fit(until=2)
    t.stopped = 15  # as after a signal
    assert t.fit(until=5).step == 5 and not t.stopped

def test_pyramid_matrices_are_constants_when_compiled():
    from nvs_nb.models.losses import laplacian_pyramid
    seen = []
    def spy(graph, inputs):
        seen.extend(str(n.target) for n in graph.graph.nodes)
        return graph.forward
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(laplacian_pyramid, backend=spy)(x, 3)
    for a, b in zip(compiled, laplacian_pyramid(x, 3), strict=True): assert torch.equal(a, b)
    assert any('matmul' in s for s in seen) and not any(w in s for s in seen for w in ('eye', 'conv1d', 'interpolate'))

@pytest.mark.parametrize('args, says', [(['--only', 'quality', '--sets', 'chars'], "set 'chars': unknown"), (['--sets', 'folder=/nowhere'], '/nowhere: no such folder'),
    (['--recipes', 'slow'], "unknown recipe 'slow'"), (['--out', '/nowhere/x.json'], '--out /nowhere/x.json: cannot write there'), (['--device', 'warp'], '--device warp')])
def test_the_command_says_what_is_wrong_before_it_measures(args, says, capsys):
    from nvs_nb.core import spoken
    with pytest.raises(SystemExit) as stop: spoken(lambda: speed.main(['--device', 'cpu', *args]), 'speed')
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and len(err.splitlines()) == 1

def test_replay_without_recording_is_the_function():
    seen = []
    step = Replay(lambda x: seen.append(x.sum().item()), record=False)
    for i in range(5): step(torch.full((2,), float(i)))
    assert seen == [0, 2, 4, 6, 8]

@pytest.mark.parametrize('name', ['first layer', 'pyramid', 'optimiser', 'triplet'])
def test_slow_versions_learn_the_same(name):
    def learn(slow):
        with speed.slowed(slow):
            t = trainer('released', lambda_t=1.)
            for _ in range(3): t.advance()
        return t.model.state_dict()
    fast, slow = learn([]), learn([name])
    for k in fast: assert (fast[k] - slow[k]).norm() <= 1e-2 * fast[k].norm() + 1e-6, k  # Adam makes much of gradients that are nearly zero

def test_the_command(tmp_path):
    args = ['--minutes', '.01', '--batch', '2', '--only', 'ladder', '--device', 'cpu', '--out', str(tmp_path/'speed-here.json')]
    code = 'import sys; from nvs_nb import speed; old, climb = speed.rungs, speed.climb; speed.rungs = lambda b: [r for r in old(b) if r.name != "compiled"]; '\
        'speed.climb = lambda *a, **k: climb(*a, width=32, **k); speed.main(sys.argv[1:])'
    done = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path/'speed-here.json').read_text())
    assert len(found['rungs']) == 12 and not [k for k, r in found['rungs'].items() if 'failed' in r]
    for r in found['rungs'].values(): assert r['difference'] <= r['tolerance'] and r['frames_per_s'] > 0 and r['predicted'] > 0
