"""The other models of Table 1 behind the same command: trained, stopped, resumed, scored, compared, and refused in one line."""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvs_nb.paper import baselines as compare
from nvs_nb.paper import reproduce
from nvs_nb.models import gan as rivals
from nvs_nb.evaluation import samples
from nvs_nb.training.checkpoint import RIVALS, load_run, rival
from nvs_nb.config import CHOICES, MODELS, make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips, load_set
from nvs_nb.paper.plan import Plan
from nvs_nb.models.gan import GAN, Rival, new_clips, trainer_of
from test_cli import complaint, done, nvs, place, refused, tree  # noqa: F401 (place is a fixture)

TINY = dict(size=32, frames=8, levels=3, width=16, d_width=8, hidden=16, batch=6, threads=1, precision='fp32', memory_format='contiguous')
OPTIONS = ['--device', 'cpu', *(x for k, v in TINY.items() for x in ('--set', f'{k}={v}'))]
FEW = 12  # clips to score: the scores themselves are tested in 07_samples


@pytest.fixture(autouse=True)
def few(monkeypatch): monkeypatch.setattr(compare, 'judge_run', lambda *args, **kw: samples.judge_run(*args[:7], **{**kw, 'n': FEW}))


def config(model, **changes): return make_config('chairs', 'fast', model=model, **{**TINY, **changes})


def test_every_model_has_its_place():
    assert set(RIVALS) == set(MODELS) == set(CHOICES['model']) - {'ours'} == set(compare.LABEL) - {'ours'}
    for m in RIVALS:
        assert type(rival(config(m))).__name__ == RIVALS[m]
        for recipe in ('fast', 'paper'): assert trainer_of(make_config('weizmann', recipe, model=m)) is Rival


@pytest.mark.parametrize('model', RIVALS)
def test_train_look_generate(model):
    r = done('train', 'chairs', '--model', model, '--epochs', 2, *OPTIONS)
    run = Path('runs')/f'chairs-{model}'
    scores = json.loads((run/'scores.json').read_text())
    assert scores['samples'] == FEW and sum(scores['hits']) == FEW and 0 < scores['coverage'] <= 1 and scores['step'] == 6
    assert 'random weights' in (run/'report.md').read_text() and 'coverage: clips met' in r.out and 'not the trained VGG16' in r.out
    for name in re.findall(r'\]\((samples/[^)]+)\)', (run/'report.md').read_text()): assert (run/name).stat().st_size > 200, name
    assert f'--model {model}' in (run/'report.md').read_text()
    assert model in done('info', run).out and 'finished' in done('info', run).out
    assert 'finished, 6 steps' in done('resume', run, '--device', 'cpu').out
    done('generate', run, '--new', 2, '--format', 'strip', '--device', 'cpu')
    assert len([*(run/'generated').glob('new_*.png')]) == 2
    before = (run/'scores.json').read_bytes()
    done('evaluate', run, '--device', 'cpu')
    a, b = (json.loads(x) for x in (before, (run/'scores.json').read_bytes()))
    assert a['fidelity'] == b['fidelity'] and a['step'] == b['step']


@pytest.mark.parametrize('model', RIVALS)
def test_resumed_to_the_bit(model, tmp_path):
    clips, c = load_set('chairs', size=32, frames=8), config(model, epochs=2)
    straight = Rival(c, clips, progress=False).fit()
    Rival(c, clips, tmp_path/'run', progress=False).fit(until=3)
    again = Rival.resume(tmp_path/'run', clips, progress=False).fit()
    assert again.step == straight.step == 6
    for (k, a), b in zip(straight.model.state_dict().items(), again.model.state_dict().values()): assert torch.equal(a, b), k
    assert np.array_equal(new_clips(straight.model, 3, clips.frames), new_clips(again.model, 3, clips.frames))


def test_other_seed_other_run():
    clips = load_set('chairs', size=32, frames=8)
    a, b = (Rival(config('tgan', epochs=1, seed=s), clips, progress=False).fit().model.state_dict() for s in (0, 1))
    assert not torch.equal(*(next(v for v in x.values() if v.ndim > 1) for x in (a, b)))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    t = Rival(config('vgan', epochs=50, lr_g=0.), load_set('chairs', size=32, frames=8), tmp_path/'run', progress=False, log_every=1)
    t.fit(until=2)
    with torch.no_grad(): next(t.model.G.parameters()).fill_(torch.nan)
    with pytest.raises(NvsError, match='not finite; last good checkpoint.*step 2'): t.fit()
    assert load_run(tmp_path/'run')[3]['trainer']['step'] == 2


def test_several_processes_are_refused():
    two = SimpleNamespace(world=2, rank=0, first=True, tell=lambda x: x)
    with pytest.raises(NvsError, match='model=mocogan trains in one process'):
        Rival(config('mocogan'), load_set('chairs', size=32, frames=8), progress=False, group=two)


@pytest.mark.parametrize('args, names', [
    (['--model', 'gan'], ['--model gan', 'vgan', 'videovae']),
    (['--set', 'model=vgan'], ['model=vgan', '--model']),
    (['--model', 'vgan', '--preset', 'released'], ['model=vgan', 'released']),
    (['--model', 'tgan', '--set', 'frames=6'], ['model=tgan', '8 frames', 'frames=6']),
    (['--model', 'mocogan', '--set', 'noise=-1'], ['noise']),
    (['--model', 'vgan', '--set', 'capture=yes'], ['capture=yes', 'CUDA']),
    (['--model', 'tgan', '--set', 'batch=1'], ['model=tgan', 'batch=1'])])
def test_refused_before_anything_is_written(args, names):
    refused('train', 'chairs', *OPTIONS, *args, names=names)


def test_runs_that_cannot_be_compared():
    for model, more in (('vgan', []), ('ours', ['--set', 'keep=*1*'])):
        c = config(model, epochs=1, **({'keep': '*1*'} if more else {}))
        trainer_of(c)(c, load_clips(c), f'runs/{model}', 'cpu', progress=False).fit()
    refused('compare', 'vgan', 'ours', '--device', 'cpu', names=['trained on other clips'])
    refused('compare', 'vgan', 'runs/vgan', '--device', 'cpu', names=['runs/vgan', 'given twice'])
    refused('compare', 'vgan', 'pretrained', '--device', 'cpu', names=['pretrained', '16 frames and 64 pixels'])
    refused('compare', 'vgan', 'nowhere', '--device', 'cpu', names=['nowhere', 'no such run'])
    refused('generate', 'vgan', '--clip', 'x', names=['--clip x'])
    refused('compare', 'vgan', '--samples', 1, names=['--samples'])


def test_checkpoint_is_not_trusted():
    c = config('vgan', epochs=1)
    Rival(c, load_clips(c), 'runs/a', 'cpu', progress=False).fit()
    path = Path('runs/a/checkpoint.pt')
    good = torch.load(path, weights_only=True)
    for change, word in [(dict(model='tgan'), 'do not fit'), (dict(model='os'), 'model'), (dict(width=32), 'do not fit'), (dict(frames=4), 'frames')]:
        torch.save({**good, 'config': {**good['config'], **change}}, path)
        refused('info', 'a', names=[word])
    spoilt = {**good['model'], next(iter(good['model'])): next(iter(good['model'].values())) * torch.nan}
    torch.save({**good, 'model': spoilt}, path)
    refused('generate', 'a', names=['non-finite'])
    g, d = (good['trainer']['opt'][k] for k in 'GD')
    for change in (dict(opt=dict(G=dict(g, state=d['state']), D=d)), dict(opt=dict(D=d)), dict(step=-5), dict(stats='abc'), dict(seconds='x')):
        torch.save({**good, 'trainer': {**good['trainer'], **change}}, path)
        refused('resume', 'a', '--device', 'cpu', names=['state of the training'])


def test_files_beside_a_run_are_not_trusted():
    done('train', 'chairs', '--model', 'vgan', '--name', 'a', '--epochs', 1, *OPTIONS)
    run = Path('runs/a')
    kept = json.loads((run/f'samples-{FEW}.json').read_text())
    for spoilt in ({'new': {}}, {'new': None}, {'new': dict(kept['kinds']['new'], mcs='x')}, 5):
        (run/f'samples-{FEW}.json').write_text(json.dumps({**kept, 'kinds': spoilt}))
        done('compare', 'a', '--out', 'page', '--device', 'cpu')  # scored again
    (run/'metrics.jsonl').write_text('{"step": 6, "seconds": "x", "epoch": 1, "critic": "a"}\n')
    for command in ('info', 'evaluate', 'compare'): refused(command, 'a', *(['--out', 'other', '--device', 'cpu'] if command == 'compare' else []), names=['metrics.jsonl'])
    (run/'metrics.jsonl').unlink()
    (run/'scores.json').write_text(json.dumps({**json.loads((run/'scores.json').read_text()), 'fidelity': 'x'}))
    refused('info', 'a', names=['scores.json'])


def test_clips_that_are_few_or_still(tmp_path):
    "One clip is too few before anything is trained; clips that do not move have no motion score"
    import imageio.v3 as iio
    for folder, n in (('one', 1), ('still', 3)):
        for i in range(n):
            (tmp_path/folder/f'clip{i}').mkdir(parents=True)
            frame = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            for k in range(8): iio.imwrite(tmp_path/folder/f'clip{i}'/f'{k}.png', frame)
    refused('train', 'folder', '--root', 'one', '--model', 'vgan', *OPTIONS, names=['two clips'])
    r = done('train', 'folder', '--root', 'still', '--model', 'mocogan', '--epochs', 1, *OPTIONS)
    assert 'the training clips do not move' in r.out and 'nvs: note' not in r.err


def test_of_several_processes_one_says_why(monkeypatch):
    for rank, lines in (('0', 1), ('1', 0)):
        monkeypatch.setenv('WORLD_SIZE', '2'), monkeypatch.setenv('RANK', rank)
        r = nvs('train', 'chairs', '--model', 'tgan', *OPTIONS)
        assert r.code == 2 and r.err.count('nvs: --model tgan') == lines and not Path('runs').exists()


def test_reproduce_decides_the_model():
    refused('reproduce', 'chairs', '--set', 'model=vgan', names=['model=vgan'])


def test_report_of_rivals(monkeypatch):
    "`nvs reproduce --only compare` in small: one rival, scored at the end and on its way"
    monkeypatch.setattr(compare, 'RIVALS', dict(vgan='VGAN'))
    monkeypatch.setattr(compare, 'ADVERSARIAL', ())
    monkeypatch.setattr(compare, 'SHOWN', 20)
    small = {k: v for k, v in TINY.items() if k != 'batch'}
    plan = Plan('demo', sets=('chairs',), seconds=3., changes=small, only=('compare',))
    assert reproduce.reproduce(plan, 'runs', 'page', 'cpu', progress=False) == {}
    found = json.loads(Path('page/results.json').read_text())['sections']['Rivals: Chair-CAD']
    labels = ['ours, codes of the dictionary', 'ours, codes exchanged between clips', 'VGAN']
    assert [*found['time']] == [*found['shown']] == labels
    assert found['shown']['VGAN']['visits'] >= 60 and found['shown']['VGAN']['visits'] <= found['time']['VGAN']['visits']
    assert {'seconds', 'critic', 'mask'} <= set(found['losses']['vgan'])
    assert (Path('page')/'strips-chairs-vgan.png').exists()
    before = tree('runs')
    reproduce.reproduce(plan, 'runs', 'page', 'cpu', progress=False)  # nothing is trained or scored twice
    assert {k: v for k, v in tree('runs').items() if 'job.json' not in k} == {k: v for k, v in before.items() if 'job.json' not in k}
    with pytest.raises(NvsError, match='--only rivals: choose of experiments, compare'): reproduce.make_plan(only=['rivals'])
