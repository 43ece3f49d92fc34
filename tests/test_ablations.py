"Intervals, random codes, white chairs, and the long measurement on toys: told, kept, gone on with."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvs_nb.evaluation import metrics as features
from nvs_nb.paper.ablations import (LOSSES, RANDOM, SIGNS, SWITCHES, ablate, brightest, draw_from, interval, jobs, main,
                              on_white, random_codes, score_codes, sections, spread, table4a)
from nvs_nb.config import make_config
from nvs_nb.core import read_json, write_json
from nvs_nb.data.clips import load_clips
from nvs_nb.evaluation.metrics import motion, untrained_vgg
from nvs_nb.paper.plan import Done, Job, Plan, open_job
from nvs_nb.models.latents import project_ball
from nvs_nb.evaluation.metrics import fcs, log_distance
from nvs_nb.models.nvs import NVS, generate
from nvs_nb.evaluation.tables import Picture, Table, write_pages

TOY = dict(size=32, frames=4, levels=2, width=16, hidden=8, d_s=8, d_t=4, precision='fp32', threads=1, epochs=3)
THREE = 'no-triplet-no-static', 'full', 'no-codes'
CHANGES = [x for k, v in TOY.items() for x in ('--set', f'{k}={v}')]


def fresh(**changes):
    "A model that nobody has trained, as if it were finished"
    c = make_config('chairs', keep='*_0*', **{**TOY, **changes})
    clips = load_clips(c)
    return Done(Job('chairs/x', c), None, NVS(c, clips.S, clips.T).eval(), c, clips, {}, True)


def test_interval_is_students():
    from scipy.stats import t
    x = np.random.default_rng(0).normal(size=(3, 8))
    for n in (2, 3, 8):
        for row in x[:, :n]:
            got, (low, high) = interval([*row, None]), t.interval(.95, n - 1, row.mean(), row.std(ddof=1) / n**.5)
            assert got['n'] == n and np.allclose((got['mean'], got['half']), (row.mean(), (high - low) / 2), rtol=3e-3)
    assert interval([]) == dict(n=0, mean=None, half=None) and spread([{}], 'psnr') == '-'
    assert spread([dict(a=1.)], 'a') == '1.00' and spread([dict(a=1.), dict(a=1.)], 'a') == '1.00 ± 0.00'


def test_variants_are_each_one_training():
    variants = {**LOSSES, **SWITCHES}
    assert len({make_config('chairs', **v).hash() for v in variants.values()}) == len(variants) == 12
    assert LOSSES.keys() == SIGNS.keys() and LOSSES['full'] == {}


def test_random_codes():
    c = fresh().config
    a, b, u = (random_codes(c, kind, 500) for kind in ('initial', 'initial', 'uniform'))
    assert torch.equal(a.z_t, b.z_t) and a.z_t.shape == (500, 4, 4) and not a.z_s.requires_grad
    assert abs(a.z_t.norm(dim=-1).square().mean() - 1) < .1 and abs(u.z_t.square().mean() - 1 / 3) < .02
    assert u.z_s.abs().max() <= 1 and not torch.equal(random_codes(c.replace(seed=1), 'initial', 500).z_t, a.z_t)
    started = NVS(c, 9, 9).dictionary
    assert not torch.equal(started.z_s, random_codes(c, 'initial', 9).z_s)


def test_foreign_codes_are_put_away_again():
    d = fresh()
    own, codes = d.model.dictionary, random_codes(d.config, 'uniform', 3)
    before = generate(d.model, [0, 1], [0, 1])
    other = draw_from(d.model, codes, [0, 1])
    assert d.model.dictionary is own and not np.array_equal(before, other)
    assert np.array_equal(generate(d.model, [0, 1], [0, 1]), before)
    with pytest.raises(Exception, match='row out of range'): draw_from(d.model, codes, [3])
    assert d.model.dictionary is own


def test_scores_of_codes_are_those_of_the_videos():
    "Sums over videos agree with all videos at once"
    d, vgg = fresh(), untrained_vgg()
    real = motion(d.clips.frames, vgg)
    got = score_codes(d, vgg, real, 5)
    draws = np.random.default_rng(d.config.seed).integers(len(d.clips), size=5)
    videos = dict(learnt=generate(d.model, d.clips.static_id[draws], d.clips.transient_id[draws]),
                  **{k: draw_from(d.model, random_codes(d.config, k, 5), np.arange(5)) for k in RANDOM})
    assert got.keys() == videos.keys()
    for k, v in videos.items():
        f = motion(v, vgg)
        want = (log_distance(real['absolute'], f['absolute']), log_distance(real['signed'], f['signed']), fcs(v).mean())
        assert np.allclose([got[k][x] for x in ('mcs', 'signed', 'fcs')], want, atol=1e-3), k


def test_table4a_takes_the_network_that_its_job_names(tmp_path, monkeypatch):
    "Also the word 'download'"
    monkeypatch.setattr(features, 'download_vgg', lambda: untrained_vgg(seed=3))
    d = fresh()._replace(path=tmp_path / 'chairs' / 'x', scores=dict(step=0))
    write_json(d.path / 'job.json', dict(vgg='download'))
    got = table4a(d, 2)
    assert got.keys() == {'learnt', *RANDOM} and read_json(d.path / 'codes.json')['key']['net']['weights_seed'] == 3


class White:
    "Draws the ground and nothing else"
    training, dictionary = False, SimpleNamespace(z_s=torch.zeros(9, 1), z_t=torch.zeros(9, 1))
    def __call__(self, s, t): return torch.ones(len(s), 4, 3, 32, 32), None
    def eval(self): pass
    def train(self, mode): pass


def test_white_chair():
    clips = np.full((3, 2, 8, 8, 3), 255, np.uint8)
    for clip, grey in zip(clips, (90, 230, 180)): clip[:, 2:6, 2:6] = grey
    assert brightest(clips) == 1
    d, rows = fresh(), np.arange(9)
    copied = on_white(d._replace(clips=replace(d.clips, frames=generate(d.model, rows, rows))), 2)
    assert copied['psnr'] == copied['psnr_object'] == 100 and copied['contrast'] == pytest.approx(1)
    white = on_white(d._replace(model=White()), 2)
    assert white['contrast'] == 0 and white['psnr'] > white['psnr_object']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Three variants, by the command"
    place = tmp_path_factory.mktemp('ablations')
    run(place)
    return place


def run(place):
    main(['chairs', '--seconds', '0', '--seeds', '1', '--only', *THREE, '--videos', '3', '--device', 'cpu',
          '--vgg16', '', '--runs', str(place / 'runs'), '--out', str(place / 'SET.json'), *CHANGES])


def toy(name):
    return Job(f'chairs/{name}-0', make_config('chairs', **TOY, seconds=0., **{**LOSSES, **SWITCHES}[name]))


def test_long_measurement(folder, capfd):
    book = read_json(folder / 'chairs.json')
    told = f'python -m nvs_nb.paper.ablations chairs --seconds 0 --seeds 1 --videos 3 --only {" ".join(THREE)} --set size=32'
    assert book['command'].startswith(told) and book['clips'] == 18 and [c['seed'] for c in book['codes']] == [0]
    assert [*book['variants']] == [*THREE]
    for r in (r for v in book['variants'].values() for r in v['runs']):
        assert (r['seed'], r['step']) == (0, 3) and 5 < r['psnr_mean'] < 30
        assert r['white'].keys() == {'psnr', 'psnr_object', 'contrast'}
        assert not [k for k in r if k.startswith('baseline_') or k.endswith('_real')]
    assert {'fcs_real', 'mcs_floor', 'baseline_psnr_mean'} <= book['common'].keys()
    assert {*book['pictures']} == {f'chairs-{k}.png' for k in ('random', 'codes', 'white')}
    for file in book['pictures']: assert (folder / file).stat().st_size > 2000
    kept = 'checkpoint.pt', 'codes.json', 'scores.json'
    made = {p: p.stat().st_mtime_ns for p in (folder / 'runs').rglob('*') if p.name in kept}
    capfd.readouterr()
    run(folder)
    assert {p: p.stat().st_mtime_ns for p in made} == made and read_json(folder / 'chairs.json') == book
    assert len(made) == 7 and 'no-codes' in capfd.readouterr().out


def test_codes_are_fixed_only_without_optimisation(folder):
    moved = {}
    for name in ('full', 'no-codes'):
        d = open_job(toy(name), folder / 'runs')
        start, now = NVS(d.config, d.clips.S, d.clips.T).dictionary, d.model.dictionary
        pairs = (start.z_s, now.z_s), (start.z_t, now.z_t)
        moved[name] = [(project_ball(a) - b).abs().max().item() for a, b in pairs]
    assert max(moved['no-codes']) < 1e-6 and min(moved['full']) > 1e-3


def test_report(folder, tmp_path):
    "Sections from whatever is done: most, one, nothing; failures are named"
    plan = Plan('demo', sets=('chairs',), changes=TOY)
    done = {f'chairs/{name}': open_job(toy(name), folder / 'runs') for name in THREE}
    assert {*done} < {j.name for j in jobs(plan)}
    got = sections(plan, done | {'chairs/no-static': 'the loss is not finite'})
    write_pages(tmp_path, 't', [], got)
    text = (tmp_path / 'report.md').read_text()
    for s in ('Table 4a', 'Table 4b', 'Figure 4', 'the loss is not finite', 'not run', '3.96'): assert s in text
    assert sum(isinstance(p, Picture) for s in got for p in s.parts) == 3 == len([*tmp_path.glob('ablation-*.png')])
    table = got[1].parts[0]
    assert isinstance(table, Table) and [r[0] for r in table.rows][3:] == [*SIGNS.values()]
    assert got[0].data['videos'] == 32 and table4a(done['chairs/full'], 32) == got[0].data['here']
    few = sections(plan, {'chairs/full': done['chairs/full']})
    assert len(few) == 3 and 'no-codes: not run' in few[2].parts
    alone, = sections(plan, {'chairs/full': 'no memory'})
    assert 'no memory' in alone.parts[0]


WILD = 'loss=mse output=linear norm=none g_init=fan lr_z=1e4 latent_opt=sgd code_norm=none epochs=30'
WILD = [x for s in WILD.split() for x in ('--set', s)]


@pytest.mark.parametrize('args, why', [
    (['--set', 'wdith=3'], "did you mean 'width'"), (['--vgg16', 'gone.npz'], 'gone.npz'),
    (WILD, 'chairs: no training ended well; the first: step ')])
def test_complaints(args, why, tmp_path, monkeypatch, capfd):
    "One line, exit code 2, no result"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(['chairs', '--seconds', '0', '--seeds', '1', '--only', 'full', '--device', 'cpu', '--out', 'out/SET.json',
              *CHANGES, *args])
    err = capfd.readouterr().err
    assert e.value.code == 2 and why in err and 'nvs: ' in err and not (tmp_path / 'out').exists()


def test_seeds_are_trainings_of_their_own(tmp_path):
    "And sets without white chairs have no such picture"
    longer = TOY | dict(epochs=20)
    book, shown = ablate('swings', 0, 2, longer, ['full'], tmp_path, videos=2, device='cpu', progress=False)
    a, b = book['variants']['full']['runs']
    assert (a['seed'], b['seed']) == (0, 1) and a['psnr_mean'] != b['psnr_mean'] and a['config'] != b['config']
    assert book['white'] is None and 'white' not in a and {*shown} == {'random'}
    assert [c['seed'] for c in book['codes']] == [0, 1] and a['fcs'] is not None
