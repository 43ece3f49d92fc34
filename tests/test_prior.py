"Priors over codes: what they draw from clouds whose answer is known, from a dictionary, and on the command line."
import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from nvs_nb import cli
from nvs_nb.bench import priors
from nvs_nb.config import make_config
from nvs_nb.core import NvsError, make_rng, read_json
from nvs_nb.evaluation.metrics import motion, untrained_vgg
from nvs_nb.evaluation.perceptual import LPIPS, clip_features
from nvs_nb.models import prior
from nvs_nb.models.build import build_model
from nvs_nb.models.nvs import generate
from nvs_nb.training.checkpoint import open_run, run_clips
from nvs_nb.models.prior import PRIORS, Prior, clip_codes, nearest_clip, show_codes, variances

SMALL = dict(size=32, frames=4, width=16, hidden=8, d_s=4, d_t=3, levels=3, threads=1)
IDS = torch.arange(6) // 3, torch.arange(6) % 3  # two people, three actions


@pytest.fixture(scope='module')
def model(): return build_model(make_config('actors', static_ids='dataset', transient_ids='dataset', **SMALL), 2, 3)


@pytest.fixture
def quick(monkeypatch):
    for kind in 'imle', 'flow':
        monkeypatch.setitem(PRIORS, kind, lambda y, rng, fit=PRIORS[kind]: fit(y, rng, steps=20))


def cloud(n=12, k=3, spread=.05):
    "Codes around the corners of a triangle of side 3, mean zero."
    corners = torch.tensor([[0, 3**.5, 0], [-1.5, -.75**.5, 0], [1.5, -.75**.5, 0]])
    y = corners.repeat(n // 3, 1) + spread * torch.randn(n, k, generator=make_rng(0))
    return y - y.mean(0)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    y = cloud()
    y = y @ torch.linalg.eigh(y.T @ y)[1]  # uncorrelated, as principal components are
    S, m = y.T @ y / len(y), float(y.square().mean())
    target = m * torch.eye(3)
    noise = sum((torch.outer(x, x) - S).square().sum() for x in y) / len(y)**2
    share = min(1, float(noise / (S - target).square().sum()))
    assert 0 < share < 1 and torch.allclose(variances(y).diag(), S.lerp(target, share), atol=1e-5)


def test_gaussian_and_mixture_are_as_wide_as_the_codes():
    y = cloud() * torch.tensor([1., 1., 20.])
    for kind in 'gaussian', 'mixture':
        x = PRIORS[kind](y, make_rng(0))(20000, make_rng(1))
        assert torch.allclose(x.mean(0), torch.zeros(3), atol=.1)
        near = .75 * (kind == 'mixture')  # share of the variance that is of the codes as they are
        assert torch.allclose(x.var(0), variances(y).lerp(y.square().mean(0), near), rtol=.05)


def test_width_of_the_mixture():
    y = cloud()
    far = lambda width: torch.cdist(prior.mixture(y, None, width)(500, make_rng(0)), y).amin(1).mean()
    assert far(0.) < 1e-3 < far(.1) < far(.5)
    wide = prior.mixture(y, None, 1.)(2000, make_rng(0))
    assert torch.allclose(wide.var(0), variances(y), rtol=.1)  # nothing is left of the codes


@pytest.mark.parametrize('kind, steps', [('imle', 200), ('flow', 400)])
def test_networks_find_the_corners(kind, steps):
    y = cloud()
    draw = PRIORS[kind](y, make_rng(0), steps=steps)
    near, which = torch.cdist(x := draw(600, make_rng(1)), y[:3]).min(1)
    control = torch.cdist(prior.gaussian(y, None)(600, make_rng(1)), y[:3]).amin(1)
    assert (near < .8).sum() > 1.4 * (control < .8).sum() and which.bincount(minlength=3).min() > 60
    assert torch.equal(x, draw(600, make_rng(1))) and not x.requires_grad


def test_imle_drops_no_code_where_a_mean_would_do():
    y = torch.cat([cloud(30), torch.tensor([[0., 0, 9]])])  # one clip like no other
    x = prior.imle(y, make_rng(0), steps=200)(2000, make_rng(1))
    assert torch.cdist(y, x).amin(1).max() < 1


def test_codes_of_clips_draw_these_clips(model):
    z_s, r = clip_codes(model, *IDS)
    assert (z_s.shape, r.shape) == ((6, 4), (6, 4, 3))
    assert np.abs(show_codes(model, z_s, r, *IDS, batch=4).astype(int) - generate(model, *IDS)).max() <= 1
    assert show_codes(model, z_s, r.repeat(1, 2, 1), *IDS).shape[1] == 8  # of any length
    assert model.training


@pytest.mark.parametrize('kind', PRIORS)
def test_a_prior_draws_clips(kind, model, quick):
    state, p = torch.get_rng_state(), Prior(model, *IDS, kind)
    a, b = p.clips(5, 1), Prior(model, *IDS, kind).clips(5, 1)
    assert a.shape == (5, 4, 32, 32, 3) and a.dtype == np.uint8 and np.array_equal(a, b)
    assert not np.array_equal(a, p.clips(5, 2)) and torch.equal(state, torch.get_rng_state())


def test_without_noise_the_mixture_is_the_dictionary(model):
    p = Prior(model, *IDS, 'mixture', keep=1., width=0.)
    z_s, r, near = p.codes(20)
    assert all(torch.allclose(x, y[near], atol=1e-4) for x, y in zip((z_s, r), clip_codes(model, *IDS)))


@pytest.mark.parametrize('ids', [(torch.zeros(3).long(), torch.arange(3)), (torch.arange(2), torch.zeros(2).long())])
def test_a_part_that_all_share_stays(model, ids):
    z_s, r, _ = Prior(model, *ids).codes(4)
    part = z_s if ids[0].sum() == 0 else r
    assert torch.allclose(part, part[:1].expand_as(part), atol=1e-4) and all(x.isfinite().all() for x in (z_s, r))


def test_only_codes_like_some_clips(model):
    p, like = Prior(model, *IDS), np.arange(6) < 2
    z_s, r, near = p.codes(30, like=like)
    assert like[near].all() and len(z_s) == len(r) == 30 and len({*near}) == 2
    assert p.clips(3, like=like).shape[0] == 3
    p.draw = lambda n, rng: p.y[:1].expand(n, -1)  # the prior has dropped all clips but one
    with pytest.raises(NvsError, match='like: of 400 draws 0 are like these 5 clips'): p.codes(2, like=np.arange(6) > 0)
    for wrong in (np.ones(5, bool), np.ones(6), 'x', np.zeros(6, bool)):
        with pytest.raises(NvsError, match='like'): p.codes(2, like=wrong)


def test_a_conditional_generator_is_told_a_label():
    c = make_config('actors', static_ids='dataset', transient_ids='dataset', label='transient', **SMALL)
    assert Prior(build_model(c, 2, 3), *IDS).clips(3).shape == (3, 4, 32, 32, 3)


def test_models_and_dictionaries_without_a_prior(model):
    with pytest.raises(NvsError, match='two clips'): Prior(model, [0], [0])
    with pytest.raises(NvsError, match='two clips'): Prior(model, [0, 0], [1, 1])
    released = build_model(make_config('chairs', 'released', size=32, frames=4, width=16, d_s=4, d_t=3, levels=3), 1, 3)
    with pytest.raises(NvsError, match='released'): Prior(released, [0, 0], [0, 1])
    with pytest.raises(NvsError, match='steps'): Prior(model, *IDS, 'imle', steps=0)


def test_the_nearest_clip():
    old = np.random.default_rng(0).integers(0, 200, (5, 4, 32, 32, 3)).astype(np.uint8)
    assert nearest_clip(old[[3, 1]] + np.uint8(9), old).tolist() == [3, 1]


# ---- the benchmark

def test_judged_against_clips_held_out(tiny_run, small_vgg):
    r = open_run(tiny_run)
    clips = run_clips(r)
    vgg, (real, held) = untrained_vgg(), np.split(clips.frames, [11])
    f, features = motion(real, vgg, looks=True), [clip_features(x, vgg) for x in (held, real)]
    copies, fresh = (priors.judge(real, fake, vgg, f, *features, LPIPS('alex')) for fake in (real, held))
    assert copies['lpips'] < 1e-6 < fresh['lpips'] and copies['lpips_pairs'] == copies['lpips_pairs_real'] > 0
    assert 'lpips' not in priors.judge(real, held, vgg, f)
    assert (copies['copies'], copies['fidelity'], copies['own']) == (1, 0, 0)
    assert fresh['copies'] < .5 and fresh['held_coverage'] == 1
    assert fresh['met'] == 0 < copies['met'] == copies['met_drawn'] == fresh['met_drawn']
    assert copies['met'] == pytest.approx(fresh['fresh'])
    assert fresh['fresh'] == pytest.approx(fresh['fidelity'], rel=.1)  # of the frames that are looked at, and of all
    films = {kind: draw() for kind, draw in priors.made_by(r, clips, n=2)}
    assert films.keys() == {'dictionary', 'exchanged', *PRIORS}
    assert all(x.shape == (2, 4, 32, 32, 3) for x in films.values())


def test_bench_goes_on_where_it_was(tmp_path, tiny_run, small_vgg, monkeypatch, capsys):
    monkeypatch.setattr(priors, 'train', lambda *args: open_run(tiny_run))
    monkeypatch.setattr(priors, 'PRIORS', dict(mixture=None))
    monkeypatch.setattr(priors, 'made_by', partial(priors.made_by, n=8))
    monkeypatch.setattr(priors, 'load_set', lambda *args: run_clips(open_run(tiny_run)))
    line = ['chairs', '--held', '0', '--seeds', '1', '--out', str(tmp_path/'a.json')]
    for rows in 3, 0:
        priors.main(line)
        assert capsys.readouterr().out.count('coverage') == rows
    book = read_json(tmp_path/'a.json')
    assert book['command'].endswith('--held 0 --seconds 300 --seeds 1 --models nvs --out a.json')
    assert [r['kind'] for r in book['rows'].values()] == ['dictionary', 'exchanged', 'mixture']
    with Image.open(tmp_path/'a.gif') as im: assert (im.size, im.n_frames) == ((66, 66), 2)  # two kinds, two frames
    with pytest.raises(NvsError, match='other options'): priors.main([*line, '--seconds', '9'])
    line[-1] = str(tmp_path/'b.json')
    priors.main([*line, '--widths', '0', '.5'])
    book = read_json(tmp_path/'b.json')
    assert book['command'].endswith('--models nvs --widths 0 0.5 --out b.json') and not (tmp_path/'b.gif').exists()
    near, far = book['rows'].values()
    assert (near['kind'], far['kind']) == ('width 0', 'width 0.5') and near['fidelity'] != far['fidelity']


def test_clips_held_out():
    names = [f'c{i}' for i in range(9)]
    a, b = (priors.held_out(names, 3, seed) for seed in (0, 1))
    assert a != b and len({*a}) == 3 and a == sorted(a) == priors.held_out(names, 3, 0)
    with pytest.raises(NvsError, match='held'): priors.held_out(names, 8, 0)


# ---- nvs sample

def nvs(capsys, *args):
    code = cli.main([*map(str, args)])
    return code, *capsys.readouterr()


def test_sample(tiny_run, capsys, monkeypatch, quick):
    monkeypatch.chdir(tiny_run.parent)
    for more in ([], ['--prior', 'imle', '--seed', 3]):
        code, out, err = nvs(capsys, 'sample', tiny_run, '--n', 3, *more)
        assert code == 0, err
        assert '3 new clips, each above the nearest of 18 training clips, as gif, mp4, strip' in out
        assert out.count(' dB') == 3 and out.count('new_0') == 3
    names = {f'{n}{s}' for n in ('new_0001', 'new_0002', 'new_0003') for s in ('.gif', '.mp4', '.png')}
    assert {p.name for p in (tiny_run/'sampled').glob('[!.]*')} == names | {'all.gif', 'all.mp4'}
    with Image.open(tiny_run/'sampled/new_0001.gif') as im: assert im.size == (32, 66) and im.n_frames == 4
    code, out, err = nvs(capsys, 'sample', tiny_run, '--n', 17, '--like', '*chair_0*', '--format', 'gif', '--out', 'x')
    assert code == 0 and '1 more' in out and len(os.listdir('x')) == 19  # with all.gif and the list of what was made


def test_sample_of_what_ships(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert nvs(capsys, 'sample', 'pretrained', '--n', 1, '--format', 'strip')[0] == 0
    assert [p.name for p in (tmp_path/'sampled').glob('[!.]*')] == ['new_0001.png']


BAD = {'--prior nonsense': '--prior', '--n 0': '--n', '--n x': '--n', '--seed -1': '--seed', '--like zebra': '--like',
       '--like ,': '--like=,: names no clip', '--format avi': '--format', '--fps 0': '--fps', '--scale 99': '--scale',
       '--device cuda:9': '--device', '--out taken': '--out taken'}


@pytest.mark.parametrize('line', [*BAD, 'none', 'baseline'])
def test_bad_option(line, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'taken').write_text('a file')
    run, args, told = tiny_run, line.split(), BAD.get(line)
    if line == 'none': run, args, told = 'none', [], 'none: no such run'
    if line == 'baseline':
        from nvs_nb.data.clips import load_clips
        from nvs_nb.training.trainer import Trainer
        c = make_config('chairs', model='vgan', size=32, frames=8, width=16, d_width=4, threads=1)
        Trainer(c, load_clips(c), tmp_path/'gan', 'cpu', progress=False).fit(until=1)
        run, args, told = tmp_path/'gan', [], 'nvs generate'
    before = sorted(tmp_path.rglob('*'))
    code, out, err = nvs(capsys, 'sample', run, *args)
    lines = [x for x in err.splitlines() if x]
    assert code == 2 and len(lines) == 1 and told in lines[0], err
    assert sorted(tmp_path.rglob('*')) == before


def test_a_file_of_ones_own_is_kept(tiny_run, capsys):
    (tiny_run/'sampled').mkdir()
    (tiny_run/'sampled/new_0001.gif').write_text('mine')
    code, _, err = nvs(capsys, 'sample', tiny_run, '--n', 1)
    assert code == 2 and 'new_0001.gif is there already' in err
    assert (tiny_run/'sampled/new_0001.gif').read_text() == 'mine'
