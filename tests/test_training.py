"What a run must survive: every recipe resumes to the bit, signals are heeded, a loss that is not finite stops in time."
import json, os, signal, subprocess, sys, time
import pytest, torch
from torch.utils._pytree import tree_leaves
from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.training.checkpoint import load_run
from nvs_nb.data.clips import load_set
from nvs_nb.training.trainer import Trainer

TINY = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, precision='fp32', memory_format='contiguous', threads=1)

@pytest.fixture(scope='module')
def chairs(): return load_set('chairs', size=32).subset(range(5))

def same(a, b):
    for name, w in a.model.state_dict().items(): assert torch.equal(w, b.model.state_dict()[name]), name
    for name, o in a.opt.items():
        for x, y in zip(tree_leaves(o.state_dict()), tree_leaves(b.opt[name].state_dict()), strict=True):
            assert torch.equal(x, y) if torch.is_tensor(x) else x == y, name
    assert a.step == b.step and all(torch.equal(x, y) for x, y in zip(a.batches(a.step)[:5], b.batches(b.step)[:5]))

@pytest.mark.parametrize('changes', [dict(recipe='fast'), dict(recipe='fast', precision='bf16', frames_per_clip=4), dict(recipe='fast', norm='batch', rank=2),
    dict(recipe='paper'), dict(recipe='released', repeats=3, d_s=6, d_t=5), dict(recipe='fast', latent_opt='sgd', label='transient', static_ids='clip')], ids=str)
def test_resume_is_exact(chairs, tmp_path, changes):
    changes = {**TINY, 'epochs': 4, 'batch': 2, **changes}
    if changes['recipe'] != 'fast': changes['batch'] = 1
    c = make_config('chairs', **changes)
    whole = Trainer(c, chairs, tmp_path/'whole', device='cpu', progress=False).fit()
    k = whole.steps // 2 - 1  # in the middle of an epoch, and for `released` in the middle of a visit
    Trainer(c, chairs, tmp_path/'cut', device='cpu', progress=False).fit(until=k)
    cut = Trainer.resume(tmp_path/'cut', chairs, device='cpu', progress=False)
    assert cut.step == k
    same(whole, cut.fit())
    steps = [json.loads(l)['step'] for l in (tmp_path/'cut'/'metrics.jsonl').read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == whole.steps

def test_seconds_end_a_run(chairs):
    t = Trainer(make_config('chairs', **TINY, seconds=1.), chairs, device='cpu', progress=False)
    t.fit()
    assert t.done() == 1 and t.seconds >= 1 and t.stats[-1]['lr'] == 0 and t.stats[-1]['step'] == t.step > 0

@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_leaves(tmp_path, signum):
    code = ("from nvs_nb.core import make_config; from nvs_nb.data.clips import load_set; from nvs_nb.training.trainer import Trainer; import sys\n"
        f"c = make_config('chairs', epochs=100000, **{TINY!r}); print('ready', flush=True)\n"
        f"t = Trainer(c, load_set('chairs', size=32).subset(range(5)), {str(tmp_path/'run')!r}, device='cpu', progress=False); print('go', flush=True); t.fit(); print(t.stopped, t.step)")
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert p.stdout.readline() == 'ready\n' and p.stdout.readline() == 'go\n'
    time.sleep(1.5); p.send_signal(signum)
    stopped, step = map(int, p.communicate(timeout=60)[0].split())
    assert p.returncode == 0 and stopped == signum
    model, config, clips, state = load_run(tmp_path/'run')
    assert state['trainer']['step'] == step > 0
    assert sorted(x.name for x in (tmp_path/'run').iterdir()) == ['checkpoint.pt', 'config.json', 'samples', 'metrics.jsonl']

def test_not_finite_stops_and_keeps_the_good_checkpoint(chairs, tmp_path):
    c = make_config('chairs', **TINY, epochs=50)
    t = Trainer(c, chairs, tmp_path/'run', device='cpu', progress=False).fit(until=10)
    t = Trainer.resume(tmp_path/'run', chairs, device='cpu', progress=False)
    with torch.no_grad(): next(t.model.G.parameters()).fill_(float('nan'))
    with pytest.raises(NvsError, match=r'step 20: the loss is not finite; last good checkpoint: .*checkpoint.pt \(step 10\)'): t.fit()
    assert load_run(tmp_path/'run')[3]['trainer']['step'] == 10

def test_static_code_learns_and_rows_not_visited_stay(chairs):
    c = make_config('chairs', **TINY, epochs=1, batch=2, static_ids='clip')
    t = Trainer(c, chairs, device='cpu', progress=False)
    before = {k: p.clone() for k, p in t.model.dictionary.named_parameters()}
    t.fit(until=1)
    for k, p in t.model.dictionary.named_parameters():
        moved = [not torch.equal(a, b) for a, b in zip(before[k], p)]
        assert sum(moved) == 2 and [i for i, m in enumerate(moved) if m] == sorted(t.batches.draw(0).idx), k

def test_released_static_code_stays(chairs):
    t = Trainer(make_config('chairs', 'released', **{**TINY, 'repeats': 2, 'epochs': 1}), chairs, device='cpu', progress=False)
    before = t.model.Z.static.clone(); t.fit()
    assert torch.equal(before, t.model.Z.static)

def test_paper_stages_update_what_they_should(chairs):
    t = Trainer(make_config('chairs', 'paper', **TINY), chairs, device='cpu', progress=False)
    seen, update = [], t.update
    def spy(which, batch):
        before = {k: v.clone() for k, v in t.model.named_parameters()}
        update(which, batch)
        seen.append((which, {k[0] if k[0] in 'GR' else 'Z' for k, v in t.model.named_parameters() if not torch.equal(v, before[k])}))
    t.update = spy; t.fit(until=1)
    assert seen == [('G', {'G'})] * 5 + [('RZ', {'R', 'Z'})]

def test_wrong_shapes_are_refused(chairs):
    with pytest.raises(NvsError, match='config asks for 64 px'): Trainer(make_config('chairs', **{**TINY, 'size': 64}), chairs, device='cpu', progress=False)
