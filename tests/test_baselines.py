"""The other models of Table 1 behind the same trainer and command: trained, stopped, resumed, scored, compared,
and refused in one line."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nvs_nb.paper import baselines, reproduce
from nvs_nb.config import BASELINES, make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips, load_set
from nvs_nb.evaluation import report, samples
from nvs_nb.evaluation.metrics import motion, untrained_vgg
from nvs_nb.evaluation.tables import as_text
from nvs_nb.models.gan import new_clips
from nvs_nb.paper.plan import Plan
from nvs_nb.training.checkpoint import load_run, open_run
from nvs_nb.training.trainer import Trainer

TINY = dict(size=32, frames=8, width=16, batch=5, threads=1, precision='fp32', memory_format='contiguous')
OWN = dict(nvs=dict(levels=3, hidden=16), videovae=dict(e_width=8, hidden=16))  # and of all GANs:
GAN = dict(d_width=8)
CLIPS = 18  # chairs in an epoch
FEW = 12    # clips to score


def config(model, **changes):
    return make_config('chairs', 'fast', model, **{**TINY, **OWN.get(model, GAN), **changes})


def options(model):
    flags = [x for k, v in {**TINY, **OWN.get(model, GAN)}.items() for x in ('--set', f'{k}={v}')]
    return ['--model', model, '--device', 'cpu', *flags]


@pytest.fixture(autouse=True)
def few(tmp_path, monkeypatch, small_vgg):
    "An empty folder to work in; only few clips are scored, with a small network"
    monkeypatch.chdir(tmp_path)
    short = lambda *args, n=0, **kw: samples.evaluate_run(*args, n=FEW, **kw)
    for module in (report, baselines): monkeypatch.setattr(module, 'evaluate_run', short)


@pytest.fixture(scope='module')
def chairs(): return load_set('chairs', size=32, frames=8)


@pytest.mark.parametrize('model', BASELINES)
def test_train_stop_resume_generate_score(model, chairs, tmp_path):
    "Stopped in the middle of an epoch and resumed: the same to the bit; scored twice: the same"
    c = config(model, epochs=2)
    straight = Trainer(c, chairs, device='cpu', progress=False).fit()
    Trainer(c, chairs, tmp_path/'run', 'cpu', progress=False).fit(until=3)
    again = Trainer.resume(tmp_path/'run', chairs, device='cpu', progress=False).fit()
    assert again.step == straight.step == 8 and again.clips_seen == straight.clips_seen == 2 * CLIPS  # not 8 steps x 5
    for (k, a), b in zip(straight.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(a, b), k
    clips = new_clips(again.model, 3, chairs.frames)
    assert clips.shape == (3, 8, 32, 32, 3) and clips.dtype == np.uint8 and clips.std() > 0
    r = open_run(tmp_path/'run')
    assert np.array_equal(clips, new_clips(r.model, 3, chairs.frames))
    assert not np.array_equal(clips, new_clips(r.model, 3, chairs.frames, seed=1))
    scores, made = report.finish(r.home, r.model, r.config, chairs)
    assert sum(scores['hits']) == scores['samples'] == FEW and 0 < scores['coverage'] <= 1
    assert (scores['step'], scores['clips_seen']) == (8, 2 * CLIPS) and scores['device'].startswith('CPU')
    text = (r.home/'report.html').read_text()
    assert 'random weights' in text and f'--model {model}' in text
    for name in made: assert (r.home/name).stat().st_size > 200, name
    assert report.score_all(r.model, r.config, chairs)[0]['fidelity'] == scores['fidelity']


def test_other_seed_other_run(chairs):
    a, b = (Trainer(config('tgan', epochs=1, seed=s), chairs, device='cpu', progress=False).fit().model.state_dict()
            for s in (0, 1))
    assert not torch.equal(*(next(v for v in x.values() if v.ndim > 1) for x in (a, b)))


def test_a_loss_that_is_not_finite_ends_the_run(chairs, tmp_path):
    t = Trainer(config('vgan', epochs=50, lr_g=0.), chairs, tmp_path/'run', 'cpu', progress=False, log_every=1)
    t.fit(until=2)
    with torch.no_grad(): next(t.model.G.parameters()).fill_(torch.nan)
    with pytest.raises(NvsError, match='not finite; last good checkpoint.*step 2'): t.fit()
    assert load_run(tmp_path/'run')[3]['trainer']['step'] == 2


def test_too_few_clips(chairs):
    with pytest.raises(NvsError, match='tgan needs two clips'):
        Trainer(config('tgan', batch=1), chairs, device='cpu', progress=False)


def test_compare(chairs):
    "Ours and a baseline on one page; their codes may differ, their clips may not"
    for name, model, more in (('ours', 'nvs', {}), ('vgan', 'vgan', {}), ('vgan2', 'vgan', dict(seed=1)),
                              ('some', 'vgan', dict(keep='*1*')), ('short', 'nvs', dict(frames=4))):
        c = config(model, epochs=1, **more)
        Trainer(c, load_clips(c), f'runs/{name}', 'cpu', progress=False).fit()
    rows = baselines.compare(['ours', 'vgan', 'vgan2'], 'page', progress=False)
    labels = ['ours, codes of the dictionary', 'ours, codes exchanged between clips',
              'VGAN (runs/vgan)', 'VGAN (runs/vgan2)']
    assert [e.label for e in rows] == labels and {e.cost['clips_seen'] for e in rows} == {CLIPS}
    text, table = Path('page/report.html').read_text(), baselines.score_table(rows)
    assert [r[0] for r in table.rows] == ['real clips (bound)', 'frozen video (control)', *labels]
    assert 'VGAN (runs/vgan2)' in as_text(table)
    assert all(label in text for label in labels) and 'random weights' in text
    assert {p.name for p in Path('page').iterdir() if p.name[0] != '.'} == {
        'report.html', 'results.json', 'strips.png', 'clips.gif', 'losses.png'}
    assert 'Nearest to the training clips: <b>ours, codes of the dictionary</b>' in text
    for names, told in (
            (['vgan', 'some'], 'runs/some: trained on other clips'),
            (['vgan', 'runs/vgan'], 'runs/vgan: given twice'),
            (['vgan', 'nowhere'], 'nowhere: no such run'),
            (['vgan', 'short'], 'runs/short: clips of 4 frames and 32 pixels, runs/vgan has 8 and 32')):
        with pytest.raises(NvsError, match=re.escape(told)): baselines.compare(names, 'other', progress=False)
    assert not Path('other').exists()


def test_kept_scores_are_not_trusted(chairs):
    "Damaged scores beside a run are computed again"
    Trainer(config('vgan', epochs=1), chairs, 'runs/a', 'cpu', progress=False).fit()
    r, vgg = open_run('a'), untrained_vgg()
    real = motion(chairs.frames, vgg, looks=True)
    score = lambda: samples.evaluate_run(r.home, r.model, r.config, chairs, vgg, lambda: real, n=2)
    before, (path,) = score(), Path('runs/a').glob('samples*.json')
    kept, stamp = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert score() == before and path.stat().st_mtime_ns == stamp
    for spoilt in ({'new': {}}, {'new': None}, {'new': dict(kept['kinds']['new'], mcs='x')}, 5):
        path.write_text(json.dumps({**kept, 'kinds': spoilt}))
        assert score()['new']['fidelity'] == before['new']['fidelity']


def test_section_of_the_report(monkeypatch, jobs_here):
    "`nvs reproduce --only baselines` in small: one baseline, scored at the end and on its way; nothing is done twice"
    monkeypatch.setattr(baselines, 'BASELINES', dict(vgan=BASELINES['vgan']))
    monkeypatch.setattr(baselines, 'ADVERSARIAL', ())
    monkeypatch.setattr(baselines, 'EARLY', 2 * CLIPS)  # in the one second of the plan
    job = Plan.job
    monkeypatch.setattr(Plan, 'job', lambda *args, **kw: job(*args, **kw, seconds=0.))  # so that epochs count
    small = {k: v for k, v in {**TINY, **GAN, **OWN['nvs']}.items() if k != 'batch'} | dict(epochs=4)
    plan = Plan('demo', sets=('chairs',), seconds=1., changes=small, only=('baselines',))
    assert reproduce.reproduce(plan, 'runs', 'page', 'cpu', progress=False) == {}
    section = json.loads(Path('page/results.json').read_text())['sections']['Baselines: Chair-CAD']
    labels = ['ours, codes of the dictionary', 'ours, codes exchanged between clips', 'VGAN']
    assert [*section['time']] == [*section['early']] == labels
    early, late = (section[when]['VGAN']['clips_seen'] for when in ('early', 'time'))
    assert 2 * CLIPS <= early < late == 4 * CLIPS
    assert {'seconds', 'discriminator', 'mask'} <= {*section['losses']['vgan']}
    assert Path('page/strips-chairs-vgan.png').exists()
    text = Path('page/report.md').read_text()
    assert re.search(r'same time for each model, on CPU \(1 thread\)', text) and 'processor core' not in text
    stamps = lambda: {p: p.stat().st_mtime_ns for p in Path('runs').rglob('*') if p.is_file()}
    before = stamps()
    reproduce.reproduce(plan, 'runs', 'page', 'cpu', progress=False)
    assert stamps() == before


@pytest.mark.parametrize('model', BASELINES)
def test_command_line(model):
    from test_cli import done
    r = done('train', 'chairs', '--epochs', 2, *options(model))
    run = Path('runs')/f'chairs-{model}'
    assert 'coverage: clips met' in r.out and 'not the trained VGG16' in r.out
    assert model in done('info', run).out and 'finished' in done('info', run).out
    assert 'finished, 8 steps' in done('resume', run, '--device', 'cpu').out
    done('generate', run, '--new', 2, '--format', 'strip', '--device', 'cpu')
    assert len([*(run/'generated').glob('new_*.png')]) == 2
    before = json.loads((run/'scores.json').read_text())
    done('evaluate', run, '--device', 'cpu')
    after = json.loads((run/'scores.json').read_text())
    assert all(before[k] == after[k] for k in ('fidelity', 'step', 'clips_seen'))


@pytest.mark.parametrize('args, names', [
    (['--model', 'gan'], ["'gan'", 'vgan', 'videovae']),
    (['--set', 'model=vgan'], ['model=vgan', '--model']),
    (['--model', 'vgan', '--preset', 'released'], ['vgan', 'released']),
    (['--model', 'tgan', '--set', 'frames=6', '--set', 'size=32'], ['tgan', '8 frames', 'frames=6']),
    (['--model', 'mocogan', '--set', 'noise=-1'], ['noise']),
    (['--model', 'vgan', '--set', 'frames_per_clip=4'], ['frames_per_clip', 'vgan']),
    (['--model', 'vgan', '--set', 'cuda_graph=yes'], ['cuda_graph=yes', 'CUDA']),
    (['--model', 'tgan', '--set', 'batch=1'], ['tgan', 'batch=1'])])
def test_refused_before_anything_is_written(args, names):
    from test_cli import refused
    refused('train', 'chairs', '--device', 'cpu', *args, names=names)


def test_clips_that_are_few_or_still(tmp_path):
    "One clip is too few before anything is trained; clips that do not move have no motion score"
    import imageio.v3 as iio
    from test_cli import done, refused
    for folder, n in (('one', 1), ('still', 3)):
        for i in range(n):
            (tmp_path/folder/f'clip{i}').mkdir(parents=True)
            frame = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            for k in range(8): iio.imwrite(tmp_path/folder/f'clip{i}'/f'{k}.png', frame)
    refused('train', 'folder', '--root', 'one', *options('vgan'), names=['two clips'])
    r = done('train', 'folder', '--root', 'still', '--epochs', 1, *options('mocogan'))
    assert 'the training clips do not move' in r.out and 'nvs: note' not in r.err


def test_files_beside_a_run_are_not_trusted():
    from test_cli import done, refused
    done('train', 'chairs', '--name', 'a', '--epochs', 1, *options('vgan'))
    run = Path('runs/a')
    (run/'metrics.jsonl').write_text('{"step": 6, "seconds": "x", "epoch": 1, "discriminator": "a"}\n')
    for command, more in (('info', []), ('evaluate', ['--device', 'cpu']),
                          ('compare', ['--out', 'other', '--device', 'cpu'])):
        refused(command, 'a', *more, names=['metrics.jsonl'])
    (run/'metrics.jsonl').unlink()
    (run/'scores.json').write_text(json.dumps({**json.loads((run/'scores.json').read_text()), 'fidelity': 'x'}))
    refused('info', 'a', names=['scores.json'])
