"Random codes, white chairs, and the long measurement on toys: told, kept, gone on with."
import contextlib
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from conftest import use_jobs_here, use_small_vgg

from nvs_nb.config import make_config
from nvs_nb.core import NvsError, one_line, read_json
from nvs_nb.data.clips import load_clips
from nvs_nb.evaluation.metrics import fcs, log_distance, motion, untrained_vgg
from nvs_nb.evaluation.tables import Picture, write_pages
from nvs_nb.models.latents import project_ball
from nvs_nb.models.nvs import NVS, generate
from nvs_nb.paper.ablations import (LOSSES, RANDOM, SIGNS, VARIANTS, ablate, brightest, draw_from, jobs, on_white,
                                    random_codes, score_codes, sections, table4a)
from nvs_nb.paper.plan import Done, Job, Plan, open_job

TOY = dict(size=32, frames=4, levels=2, width=16, hidden=8, d_s=8, d_t=4, precision='fp32', threads=1, epochs=3)
CHANGES = [f'{k}={v}' for k, v in TOY.items()]
THREE = ['no-triplet-no-static', 'full', 'no-codes']


@pytest.fixture(scope='module', autouse=True)
def vgg_is_small():
    with pytest.MonkeyPatch.context() as m:
        use_small_vgg(m)
        yield


def fresh(**changes):
    "A model that nobody has trained, as if it were finished"
    c = make_config('chairs', keep='*_0*', **{**TOY, **changes})
    clips = load_clips(c)
    return Done(Job('chairs/x', c), None, NVS(c, clips.S, clips.T).eval(), c, clips, {}, True)


def test_variants_are_each_one_training():
    assert len({make_config('chairs', **v).hash() for v in VARIANTS.values()}) == len(VARIANTS) == 12
    assert LOSSES.keys() == SIGNS.keys() and LOSSES['full'] == {}


def test_random_codes():
    c = fresh().config
    a, b, u = (random_codes(c, kind, 500) for kind in ('initial', 'initial', 'uniform'))
    assert torch.equal(a.paths, b.paths) and a.paths.shape == (500, 4, 4) and not a.static.requires_grad
    assert abs(a.paths.norm(dim=-1).square().mean() - 1) < .1 and abs(u.paths.square().mean() - 1 / 3) < .02
    assert u.static.abs().max() <= 1 and not torch.equal(random_codes(c.replace(seed=1), 'initial', 500).paths, a.paths)
    assert not torch.equal(NVS(c, 9, 9).Z.static, random_codes(c, 'initial', 9).static)


def test_foreign_codes_are_put_away_again():
    d = fresh()
    own, codes = d.model.Z, random_codes(d.config, 'uniform', 3)
    before = generate(d.model, [0, 1], [0, 1])
    assert not np.array_equal(before, draw_from(d.model, codes, [0, 1])) and d.model.Z is own
    assert np.array_equal(generate(d.model, [0, 1], [0, 1]), before)
    with pytest.raises(NvsError, match='index out of range'): draw_from(d.model, codes, [3])
    assert d.model.Z is own


def test_scores_of_codes():
    "Those of the videos that the codes make, against the real ones"
    d, vgg = fresh(), untrained_vgg()
    real = motion(d.clips.frames, vgg)
    got, draws = score_codes(d, vgg, real, 5), np.random.default_rng(d.config.seed).integers(len(d.clips), size=5)
    learnt = generate(d.model, d.clips.static_id, d.clips.transient_id)[draws]
    uniform = draw_from(d.model, random_codes(d.config, 'uniform', 5), np.arange(5))
    for k, videos in ('learnt', learnt), ('uniform', uniform):
        f = motion(videos, vgg)
        mcs, signed = (log_distance(real[mode], f[mode]) for mode in ('absolute', 'signed'))
        want = mcs, signed, fcs(videos).mean()
        assert np.allclose([got[k][x] for x in ('mcs', 'signed', 'fcs')], want, atol=1e-5), k
    assert got.keys() == {'learnt', *RANDOM}


def test_white_chair():
    clips = np.full((3, 2, 8, 8, 3), 255, np.uint8)
    for clip, grey in zip(clips, (90, 230, 180)): clip[:, 2:6, 2:6] = grey
    assert brightest(clips) == 1
    d, every = fresh(), np.arange(9)
    copied = on_white(d._replace(clips=replace(d.clips, frames=generate(d.model, every, every))), 2)
    assert copied['psnr_object'] == 100 and copied['contrast'] == pytest.approx(1)
    with torch.no_grad():
        for p in d.model.G.net[-2].parameters(): p.zero_()
        d.model.G.net[-2].bias.fill_(9.)  # tanh(9): white, whatever the codes
    white = on_white(d, 2)
    assert abs(white['contrast']) < 1e-6 and white['psnr_object'] < 30


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Three variants, by the command"
    place = tmp_path_factory.mktemp('ablations')
    command(place, 0)
    return place


def command(place, code, *more, only=THREE):
    args = [x for option, some in (('--only', only), ('--set', CHANGES)) for value in some for x in (option, value)]
    args += '--seconds 0 --seeds 1 --videos 3 --device cpu'.split() + [*more]
    places, err = ['--runs', str(place / 'runs'), '--out', str(place / 'SET.json')], io.StringIO()
    with pytest.MonkeyPatch.context() as m, contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        m.setattr(sys, 'argv', ['ablations', 'chairs', *args, *places])
        use_jobs_here(m)
        with one_line(): typer.run(ablate)
    assert (end.value.code or 0) == code, err.getvalue()
    return err.getvalue()


def toy(name): return Job(f'chairs/{name}-0', make_config('chairs', **{**TOY, 'seconds': 0., **VARIANTS[name]}))


def test_long_measurement(folder):
    book = read_json(folder / 'chairs.json')
    assert book['command'].startswith('python -m nvs_nb.paper.ablations chairs --only') and book['clips'] == 18
    assert [*book['variants']] == THREE and [c['seed'] for c in book['codes']] == [0]
    for r in (r for v in book['variants'].values() for r in v['runs']):
        assert (r['seed'], r['step']) == (0, 3) and 5 < r['psnr_mean'] < 30 and 0 <= r['active'] <= 1
        assert r['white'].keys() == {'psnr_object', 'contrast'}
    assert {'fcs_real', 'mcs_floor', 'mcs_frozen', 'baseline_psnr_mean'} <= book['common'].keys()
    made = {p: p.stat().st_mtime_ns for p in (folder / 'runs').rglob('*') if p.suffix in ('.pt', '.json')}
    command(folder, 0)
    assert {p: p.stat().st_mtime_ns for p in made} == made and read_json(folder / 'chairs.json') == book


def test_codes_are_fixed_only_without_optimisation(folder):
    moved = {}
    for name in ('full', 'no-codes'):
        d = open_job(toy(name), folder / 'runs')
        start, now = NVS(d.config, d.clips.S, d.clips.T).Z, d.model.Z
        pairs = (start.static, now.static), (start.paths, now.paths)
        moved[name] = [(project_ball(a) - b).abs().max().item() for a, b in pairs]
    assert max(moved['no-codes']) < 1e-6 and min(moved['full']) > 1e-3


def test_report(folder, tmp_path):
    "Sections from whatever is done: most, one, nothing; failures are named"
    plan = Plan('demo', sets=('chairs',), changes=TOY, folder=str(folder / 'runs'))
    done = {f'chairs/{name}': open_job(toy(name), folder / 'runs') for name in THREE}
    assert {*done} < {j.name for j in jobs(plan)}
    got = sections(plan, done | {'chairs/no-static': 'the loss is not finite'})
    write_pages(tmp_path, 't', [], got)
    text = (tmp_path / 'report.html').read_text()
    for s in ('Table 4a', 'Table 4b', 'Figure 4', 'the loss is not finite', 'not run', '3.96'): assert s in text
    assert sum(isinstance(p, Picture) for s in got for p in s.parts) == 3 == len([*tmp_path.glob('ablation-*.png')])
    assert [r[0] for r in got[1].parts[0].rows][4:] == [*SIGNS.values()]
    assert got[0].data['videos'] == 32 and table4a(done['chairs/full'], 32, '', plan.folder) == got[0].data['here']
    few = sections(plan, {'chairs/full': done['chairs/full']})
    assert len(few) == 3 and 'no-codes: not run' in few[2].parts
    alone, = sections(plan, {'chairs/full': 'no memory'})
    assert 'no memory' in alone.parts[0]


WILD = 'loss=mse output=linear norm=none g_init=fan lr_z=1e4 latent_opt=sgd code_norm=none epochs=30'


@pytest.mark.parametrize('wrong, why', [
    (dict(changes=['wdith=3']), "did you mean 'width'"), (dict(vgg16='gone.npz'), 'gone.npz'),
    (dict(only=['fool']), 'choose of no-triplet-no-static'),
    (dict(base='swings'), 'choose of chairs, weizmann, golf')])
def test_complaints(wrong, why, tmp_path):
    with pytest.raises(NvsError, match=why):
        ablate(**dict(base='chairs', seeds=1) | wrong, out=str(tmp_path / 'SET.json'), runs=str(tmp_path / 'runs'))
    assert not [*tmp_path.iterdir()]


def test_a_training_that_fails_is_one_line(tmp_path):
    err = command(tmp_path, 2, *[x for s in WILD.split() for x in ('--set', s)], only=['full'])
    assert err.splitlines()[-1].startswith('nvs: chairs: no training ended well; the first: step ')
    assert not (tmp_path / 'chairs.json').exists()


def test_seeds_are_trainings_of_their_own(tmp_path, jobs_here):
    "And datasets without white chairs have no such number"
    place = dict(out=str(tmp_path / 'SET.json'), runs=str(tmp_path / 'runs'))
    ablate('golf', 0., 2, 2, ['full'], [*CHANGES, 'epochs=10'], **place, device='cpu')
    book = read_json(tmp_path / 'golf.json')
    a, b = book['variants']['full']['runs']
    assert (a['seed'], b['seed']) == (0, 1) and a['psnr_mean'] != b['psnr_mean'] and 'white' not in a
    assert book['dataset'] == 'swings' and [c['seed'] for c in book['codes']] == [0, 1] and a['fcs'] is not None
