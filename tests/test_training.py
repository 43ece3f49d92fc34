"""What a run must survive: every model resumes to the bit, signals are heeded, a loss that is not finite stops in time;
and a run is a function of its configuration."""
import hashlib
import json
import os
import signal

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_set
from nvs_nb.models.latents import project_ball
from nvs_nb.models.nvs import generate
from nvs_nb.training import checkpoint, sampler, trainer
from nvs_nb.training.checkpoint import load_run
from nvs_nb.training.trainer import Callback, Trainer

SMALL = dict(size=32, width=16, d_s=6, d_t=5, hidden=8, levels=3)
TINY = dict(SMALL, threads=1)


@pytest.fixture(scope='module')
def chairs(): return load_set('chairs', size=32).subset(range(5))


def make(preset='fast', **changes): return make_config('chairs', preset, **{**TINY, **changes})


def start(c, clips, run=None, **kw): return Trainer(c, clips, run, device='cpu', progress=False, **kw)


def same(a, b):
    for name, w in a.model.state_dict().items(): assert torch.equal(w, b.model.state_dict()[name]), name
    for name, o in a.optimizers.items():
        for x, y in zip(tree_leaves(o.state_dict()), tree_leaves(b.optimizers[name].state_dict()), strict=True):
            assert torch.equal(x, y) if torch.is_tensor(x) else x == y, name
    assert a.step == b.step and a.clips_seen == b.clips_seen


@pytest.mark.parametrize('changes', [
    dict(preset='fast', batch=2), dict(batch=2, precision='bf16', frames_per_clip=4),
    dict(batch=2, norm='batch', rank=2),
    dict(batch=2, latent_opt='sparse_adam'), dict(preset='paper'), dict(preset='released', repeats=3),
    dict(preset='glo', batch=2, hidden=0), dict(batch=2, g_opt='muon', schedule='alternating'),
    dict(batch=2, latent_opt='sgd', label='transient', static_ids='clip')], ids=str)
def test_resume_is_exact(chairs, tmp_path, changes):
    c = make(**{'epochs': 4, **changes})
    whole = start(c, chairs, tmp_path / 'whole').fit()
    k = whole.steps // 2 - 1  # in the middle of an epoch, and for `released` in the middle of a clip's turn
    start(c, chairs, tmp_path / 'cut').fit(until=k)
    cut = Trainer.resume(tmp_path / 'cut', chairs, device='cpu', progress=False)
    assert cut.step == k
    same(whole, cut.fit())
    steps = [json.loads(x)['step'] for x in (tmp_path / 'cut' / 'metrics.jsonl').read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == whole.steps


# ---- a run is a function of its configuration and seed

def test_the_same_configuration_twice_gives_the_same_bits(chairs):
    "With nothing set but what makes it small: no thread, no precision, no memory format"
    c = make_config('chairs', **SMALL, epochs=3)
    same(start(c, chairs).fit(), start(c, chairs).fit())


def test_nothing_is_measured_at_the_start(chairs, monkeypatch):
    "What is decided before a run does not ask a clock"
    for module in (trainer.runtime, trainer): monkeypatch.setattr(module, 'time', None, raising=False)
    assert start(make(), chairs).c == make(precision='fp32')


def tell(path):
    t = start(make_config('chairs', **SMALL, epochs=2), load_set('chairs', size=32)).fit()
    weights = b''.join(w.numpy().tobytes() for w in t.model.state_dict().values())
    path.write_text(f'{t.c.hash()} {hashlib.sha256(weights).hexdigest()}')


def test_starts_under_load_find_one_answer(tmp_path, fork):
    "Three at the same time load each other"
    assert [p.result().code for p in [fork(tell, tmp_path / f'{i}.txt') for i in range(3)]] == [0] * 3
    assert len({p.read_text() for p in tmp_path.glob('*.txt')}) == 1


def test_clips_are_counted(chairs):
    "Batches at the end of an epoch are smaller; what was shown is what was drawn"
    t = start(make(batch=3, epochs=4), chairs).fit()
    assert (t.step, t.clips_seen, t.metrics[-1]['clips']) == (8, 20, 20)


# ---- one forward for training and generation

@pytest.mark.parametrize('changes', [
    dict(frames_per_clip=4, epochs=25, lr_g=3e-3), dict(preset='released', repeats=10, epochs=3, lambda_t=0.)], ids=str)
def test_what_is_trained_is_what_is_generated(chairs, changes):
    "The error that training tells is that of the generated clips (once it was not, for the released layout)"
    if 'preset' not in changes: changes = dict(batch=5, norm='none', **changes)
    t = start(make(**changes), chairs, log_every=1)
    t.fit()
    t.model.train()
    with torch.no_grad():
        batch = sampler.Sampler(t.c, t.clips, 'cpu')(0)
        fake, _ = t.model(batch.static_id, batch.transient_id, batch.at)
        clips = generate(t.model, batch.static_id, batch.transient_id)
    shown = torch.from_numpy(clips).gather(1, batch.at[..., None, None, None].expand(-1, -1, 32, 32, 3))
    assert (fake.movedim(2, -1).add(1).mul(127.5).clamp(0, 255) - shown).abs().max() < 1


# ---- signals, and what must not be lost

def test_seconds_end_a_run(chairs):
    t = start(make(seconds=1.), chairs).fit()
    assert t.done() == 1 and t.seconds >= 1 and t.metrics[-1]['lr'] == 0 and t.metrics[-1]['step'] == t.step > 0


def test_a_limit_leaves_the_rest_of_the_epochs_out(chairs):
    class Slow(Trainer):
        now = 0.
        def clock(self):  # asked before and after each step, which takes half a second
            self.now += .5
            return self.now
    def trained(**changes): return Slow(make(decay='cosine', **changes), chairs, device='cpu', progress=False).fit()
    cut = trained(epochs=100, limit=10.)
    assert cut.step == 20 < cut.steps and cut.done() == 1
    assert cut.lr_factor() < 1e-3  # the rates have come down all the same
    same(trained(epochs=2), trained(epochs=2, limit=1e6))


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_saves_and_leaves(chairs, tmp_path, signum):
    class Press(Callback):
        def step(self, t):
            if t.step == 7: os.kill(os.getpid(), signum)
    t = start(make(epochs=50), chairs, tmp_path / 'run', callbacks=[Press()]).fit()
    assert t.stopped == signum and t.step in (7, 8)
    assert load_run(tmp_path / 'run')[3]['trainer']['step'] == t.step
    names = {x.name for x in (tmp_path / 'run').iterdir()}
    assert names - {'.lock'} == {'checkpoint.pt', 'clips.json', 'config.json', 'samples', 'metrics.jsonl'}


def die_saving(run):
    t = start(make(epochs=50), load_set('chairs', size=32).subset(range(5)), run).fit(until=5)
    checkpoint.torch.save = lambda state, f: (f.write(b'half'), f.flush(), os.kill(os.getpid(), signal.SIGKILL))
    t.fit(until=10)


def test_what_a_kill_in_a_save_leaves_is_removed(chairs, tmp_path, fork):
    run = tmp_path / 'run'
    assert fork(die_saving, run).result().code == -signal.SIGKILL
    assert [p for p in run.glob('.checkpoint*')], 'nothing was left: the test does not test'
    t = Trainer.resume(run, chairs, device='cpu', progress=False)
    assert t.step == 5
    t.fit(until=6)
    assert not [p for p in run.glob('.checkpoint*')]


def test_metrics_are_appended(chairs, tmp_path):
    "Lines that stand are never written again while training, and are no part of the checkpoint"
    sizes = []
    class Watch(Callback):
        def step(self, t):
            path = t.run / 'metrics.jsonl'
            if path.exists(): sizes.append((path.stat().st_ino, path.stat().st_size))
    start(make(epochs=8, batch=2), chairs, tmp_path / 'run', callbacks=[Watch()], save_every=0., log_every=3).fit()
    assert len({inode for inode, _ in sizes}) == 1 and [s for _, s in sizes] == sorted(s for _, s in sizes)
    assert set(load_run(tmp_path / 'run')[3]['trainer']) == {'step', 'seconds', 'clips_seen', 'opt'}


def test_a_line_that_was_cut_short_is_no_obstacle(chairs, tmp_path):
    "As a full disk or a power cut leaves it: the run goes on, and its lines are whole again"
    start(make(epochs=8, batch=2), chairs, tmp_path / 'run', log_every=1).fit(until=6)
    path = tmp_path / 'run' / 'metrics.jsonl'
    path.write_bytes(path.read_bytes() + b'{"step": 7, "ep')
    Trainer.resume(tmp_path / 'run', chairs, device='cpu', progress=False, log_every=1).fit(until=8)
    assert [json.loads(x)['step'] for x in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_not_finite_stops_and_keeps_the_good_checkpoint(chairs, tmp_path):
    start(make(epochs=50), chairs, tmp_path / 'run').fit(until=10)
    t = Trainer.resume(tmp_path / 'run', chairs, device='cpu', progress=False)
    with torch.no_grad(): next(t.model.G.parameters()).fill_(float('nan'))
    told = r'step 20: loss is not finite; last good checkpoint: .*checkpoint.pt \(step 10\)'
    with pytest.raises(NvsError, match=told): t.fit()
    assert load_run(tmp_path / 'run')[3]['trainer']['step'] == 10


# ---- what moves

def moved(model, before): return {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}


def copy(model): return {k: v.detach().clone() for k, v in model.named_parameters()}


def test_codes_learn_and_with_sparse_gradients_only_those_visited(chairs):
    for opt in ('adam', 'sparse_adam'):
        t = start(make(batch=2, latent_opt=opt), chairs)
        before = {k: project_ball(v.unflatten(1, (-1, 5 if 'z_t' in k else 6))).flatten(1)
                  for k, v in copy(t.model.Z).items()}
        if opt == 'adam': t.model.Z.project_()  # codes may start a little outside of the ball
        else: before = copy(t.model.Z)
        t.fit(until=1)
        first = t.sampler(0).transient_id.tolist()
        t.fit(until=2)
        second = t.sampler(1).transient_id.tolist()
        for k, p in t.model.Z.named_parameters():
            rows = {i for i in range(5) if not torch.equal(before[k][i], p[i])}
            assert rows == {*first, *second}, (opt, k)
        visited = [*{*first, *second}]
        for z in (t.model.Z.paths, t.model.Z.static): assert (z[visited].norm(dim=-1) <= 1 + 1e-5).all()


def test_released_static_code_stays(chairs):
    t = start(make('released', repeats=2, epochs=1), chairs)
    before = copy(t.model)
    t.fit()
    assert not [k for k in moved(t.model, before) if 'z_s' in k] and 'Z.z_t.weight' in moved(t.model, before)


def test_paper_stages_update_what_they_should(chairs, monkeypatch):
    t, seen = start(make('paper'), chairs), []
    for name, o in t.optimizers.items():
        def step(*args, name=name, was=o.step, **kw):
            before = copy(t.model)
            was(*args, **kw)
            seen.append((name, {k[0] for k in moved(t.model, before)}))
        monkeypatch.setattr(o, 'step', step)
    t.fit(until=1)
    assert seen == [('G', {'G'})] * 5 + [('R', {'R'}), ('Z', {'Z'})]


def test_wrong_shapes_are_refused(chairs):
    with pytest.raises(NvsError, match='config asks for 64 px'): start(make(size=64), chairs)
    with pytest.raises(NvsError, match='two clips or more'):
        start(make_config('chairs', model='vgan', size=32, frames=8, width=16, batch=1),
              load_set('chairs', size=32, frames=8))


def test_options_are_honoured_by_every_model():
    "What can be said of a baseline is done: a compiled generator, channels last"
    clips = load_set('chairs', size=32, frames=8)
    t = start(make_config('chairs', model='vgan', size=32, frames=8, width=16, compile=True), clips)
    assert t.model.G._compiled_call_impl is not None
    t = start(make_config('chairs', model='tgan', size=32, frames=8, width=16), clips)
    assert t.model.G.image.net[3].weight.is_contiguous(memory_format=torch.channels_last)
