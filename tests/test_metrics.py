"Scores against other implementations and known answers; the command."
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation import metrics
from nvs_nb.evaluation.metrics import (CAP, CONTROL, KNOWN, MODES, VGGFeatures, blurred, controls, fcs, frame_ssim,
                                       frozen, mcs, mcs_floor, mean_frame, moving_mask, pca_frames, pca_scores,
                                       pixel_scores, psnr, psnr_moving, read_vgg, score, shifted, shuffled, ssim,
                                       vgg_features)

reference_ssim = partial(structural_similarity, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                         channel_axis=-1)


@pytest.fixture(scope='module')
def real(): return load_set('chairs').frames[:3, :5, ::2, ::2]


@pytest.fixture(scope='module')
def noisy(real):
    return (real.astype(int) + np.random.default_rng(0).integers(-20, 20, real.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp('vgg')/'small.npz'
    np.savez(path, **{k: v.numpy() for k, v in VGGFeatures(seed=1).state_dict().items()})
    return path


@pytest.fixture(scope='module')
def net(npz): return read_vgg(npz)


@pytest.fixture(autouse=True)
def no_vgg_in_the_environment(monkeypatch): monkeypatch.delenv('NVS_VGG16', raising=False)


# pixels

def test_psnr_agrees_with_skimage(real, noisy):
    expected = [peak_signal_noise_ratio(a/255., b/255., data_range=1) for a, b in zip(real, noisy)]
    assert psnr(real, noisy) == pytest.approx(expected)


def test_psnr_counts_all_pixels_before_the_logarithm(real):
    fake = real.copy()
    fake[0, 0] ^= 128  # one bad frame among five
    mse = (.5019607843137255**2) / 5
    assert psnr(real, fake)[0] == pytest.approx(-10*math.log10(mse)) and (psnr(real, fake)[1:] == CAP).all()


def hard_frames(kind):
    "Two frames for SSIM to compare."
    rng = np.random.default_rng(0)
    noise, flat = rng.integers(0, 256, (2, 24, 33, 3), dtype=np.uint8), np.full((24, 33, 3), 200, np.uint8)
    return dict(noise=noise, flat=(flat, flat // 3), equal=(flat, flat), half=(flat, noise[0]), window=noise[:, :11, :11],
                wide=noise[:, :11], large=rng.integers(0, 256, (2, 257, 256, 3), dtype=np.uint8))[kind]


@pytest.mark.parametrize('kind', ['noise', 'flat', 'equal', 'half', 'window', 'wide', 'large'])
def test_ssim_of_a_frame_agrees_with_skimage(kind):
    p, q = hard_frames(kind)
    expected = reference_ssim(p, q, data_range=255)
    assert frame_ssim(p[None], q[None]) == pytest.approx([expected], abs=1e-9)
    assert frame_ssim([p, q], q[None]) == pytest.approx([expected, 1], abs=1e-9) == frame_ssim([p, q], [q, q])


def test_ssim_agrees_with_skimage(real, noisy):
    expected = [np.mean([reference_ssim(p, q, data_range=255) for p, q in zip(a, b)]) for a, b in zip(real, noisy)]
    assert ssim(real, noisy) == pytest.approx(expected, abs=1e-9) and ssim(real, real) == pytest.approx(np.ones(3))
    many = [np.repeat(x, 30, 1)[:1] for x in (real, noisy)]  # more frames than are taken at a time
    assert ssim(*many) == pytest.approx(expected[:1], abs=1e-9)


@pytest.mark.parametrize('p, q', [(3, 2), (2, 3), (1, 3), (0, 1)])
def test_ssim_wants_pairs_of_frames(real, p, q):
    with pytest.raises(NvsError, match='must be uint8'): frame_ssim(real[0, :p], real[0, :q])
    with pytest.raises(NvsError, match='height must be a whole number from 11'): frame_ssim(*real[:2, :, :10])


def test_moving_pixels_by_hand():
    clip = np.zeros((1, 4, 16, 16, 3), np.uint8)
    clip[0, ::2, 2, 3, 1] = 26  # deviation 13/255 > .05, one channel only
    clip[0, ::2, 5, 5] = 25  # deviation 12.5/255 < .05
    assert np.argwhere(moving_mask(clip)).tolist() == [[0, 2, 3]]
    fake = clip.copy()
    fake[0, :, 2, 3, 0] = 51
    assert psnr_moving(clip, fake) == pytest.approx(-10*math.log10(.2**2/3))
    assert np.isnan(psnr_moving(frozen(clip), fake)).all()


def test_fcs_by_hand(real):
    s = np.array([[reference_ssim(c[0], f, data_range=255) for f in c] for c in real])
    assert fcs(real) == pytest.approx(s.mean(1)) and fcs(real, count_first=False) == pytest.approx(s[:, 1:].mean(1))
    assert fcs(frozen(real), count_first=False) == pytest.approx(np.ones(3)) == fcs(frozen(real), consecutive=True)
    assert fcs(real[:, ::-1], consecutive=True) == pytest.approx(fcs(real, consecutive=True))


def test_tensors_and_memory_maps_score_the_same(real, noisy, tmp_path):
    np.save(tmp_path/'x.npy', real)
    mapped = np.load(tmp_path/'x.npy', mmap_mode='r')
    assert (psnr(torch.from_numpy(real), noisy) == psnr(mapped, noisy)).all()
    assert (fcs(mapped) == fcs(real)).all()


@pytest.mark.parametrize('of', [psnr, ssim, psnr_moving, score])
def test_what_cannot_be_scored(of, real):
    for bad in (real/255., real[0], real[:0], real[:, :1], real.transpose(0, 1, 4, 2, 3)):
        with pytest.raises(NvsError, match='uint8'): of(bad, bad)
    with pytest.raises(NvsError, match='one shape'): of(real, real[:2])


# principal components

@pytest.mark.parametrize('step', [4, 1])  # fewer values than frames, and more
def test_pca_pays_for_every_number_and_improves_with_bytes(step):
    clips = load_set('chairs', size=32).frames[:, :, ::step, ::step]
    F, P, errors = 18 * 16, (32 // step)**2 * 3, []
    for nbytes in (P + (P + F + 8), P + 9 * (P + F + 8) - 1, P + 40 * (P + F + 8), 10**9):
        fake, k, taken = pca_frames(clips, nbytes)
        assert taken == P + k * (P + F + 8) <= nbytes and (k == min(F, P) or taken + P + F + 8 > nbytes)
        assert fake.shape == clips.shape and fake.dtype == np.uint8
        errors.append(np.square(fake.astype(float) - clips).mean())
    assert errors == sorted(errors, reverse=True) and errors[0] > 100 > 4 > errors[-1]  # 8 bits a number remain


def test_pca_is_that_of_numpy(real):
    x = real.reshape(15, -1).astype(float)
    mean = x.mean(0).round()
    u, s, v = np.linalg.svd(x - mean, full_matrices=False)
    expected = (u[:, :4] * s[:4] @ v[:4] + mean).clip(0, 255)
    fake, k, _ = pca_frames(real, x.shape[1] + 4 * (x.size // 15 + 15 + 8))
    assert k == 4 and np.abs(fake.reshape(15, -1) - expected).mean() < 1
    flat, k, _ = pca_frames(np.full_like(real, 9), 10**9)
    assert (flat == 9).all() and k == 15


def test_pca_that_cannot_be(real, monkeypatch):
    for nbytes in (1, 3072 + 3072 + 15 + 7):
        with pytest.raises(NvsError, match='nbytes=.*one component'): pca_frames(real, nbytes)
    got, why = pca_scores(real, 1)
    assert set(got) == {*CONTROL, 'components', 'bytes'} and {*got.values()} == {None} and 'one component' in why
    monkeypatch.setattr(metrics, 'PCA_SIDE', 14)
    assert 'the most' in pca_scores(real, 10**9)[1]


# known answers

def test_known_answers_are_what_their_names_say(real):
    assert (frozen(real) == real[:, :1]).all() and frozen(real).shape == real.shape
    mean = mean_frame(real)
    assert np.abs(mean[:, 2] - real.mean(1)).max() <= .5 and (mean == mean[:, :1]).all()
    assert (shifted(real)[..., 1:, :] == real[..., :-1, :]).all()
    assert (shifted(real, 3)[..., :3, :] == real[..., :1, :]).all()
    again = shuffled(real, seed=1)
    assert (again == shuffled(real, seed=1)).all() and (again != real).any()
    assert all(sorted(map(bytes, a)) == sorted(map(bytes, b)) for a, b in zip(again, real))
    flat = np.full_like(real, 77)
    assert (blurred(flat) == 77).all() and blurred(real).std() < real.std()
    for make in KNOWN.values(): assert make(real).shape == real.shape and make(real).dtype == np.uint8


# motion consistency

def test_mcs_by_hand(real, noisy, net):
    def mean_difference(clips, sign):
        phi = np.stack([vgg_features(c, net).double().numpy() for c in clips])
        d = [phi[n, i+1] - phi[n, i] for n in range(3) for i in range(4)]
        return np.mean(d if sign else np.abs(d), 0)
    for mode in MODES:
        f, g = (mean_difference(c, mode == 'signed') for c in (real, noisy))
        assert mcs(real, noisy, net, mode) == pytest.approx(np.log10(((f-g)**2).sum()), abs=1e-4)
        assert mcs(real, frozen(noisy), net, mode) == pytest.approx(np.log10((f**2).sum()), abs=1e-4)
    assert mcs(real, real, net) == -math.inf
    with pytest.raises(NvsError, match="mode 'literal': choose absolute, signed"): mcs(real, real, net, 'literal')


def test_floor_is_seeded_and_splits_all_clips():
    f = torch.tensor([[0.], [1.], [2.], [4.]])
    assert mcs_floor(f, seed=5) == mcs_floor(f, seed=5) != mcs_floor(f, seed=6)
    possible = {round(math.log10(d**2), 6) for d in (2.5, 1.5, .5)}  # the three ways to halve four clips
    for seed in range(6):
        mean, sd = mcs_floor(f, seed, draws=1)
        assert round(mean, 6) in possible and sd == 0
    assert np.isnan(mcs_floor(f[:1])).all()


# everything at once

def test_score_is_flat_and_json(real, noisy, net):
    s = score(real, noisy, net, config_hash='abc', seed=3)
    cards = s.pop('cards')
    json.dumps([s, cards], allow_nan=False)
    assert all(isinstance(v, float) or k == 'psnr_clips' and len(v) == 3 for k, v in s.items())
    assert set(cards) == {'psnr', 'psnr_moving', 'ssim', 'fcs', 'mcs'}
    for card in cards.values():
        assert [card[k] for k in ('clips', 'frames', 'size', 'config', 'seed')] == [3, 5, 32, 'abc', 3]
        assert card['seconds'] >= 0
    assert cards['mcs']['file'] == 'small.npz' and len(cards['mcs']['sha256']) == 16
    assert s['psnr_worst'] == min(s['psnr_clips']) and s['psnr_mean'] == pytest.approx(np.mean(s['psnr_clips']))
    assert s['fcs_real'] == pytest.approx(fcs(real).mean())
    assert s['fcs_gap'] == pytest.approx(abs(s['fcs']-s['fcs_real']))
    assert s['mcs'] == pytest.approx(mcs(real, noisy, net))
    assert s['mcs_signed'] == pytest.approx(mcs(real, noisy, net, 'signed'))
    assert {k: s[k] for k in pixel_scores(real, noisy)} == pixel_scores(real, noisy)
    assert s['ssim'] == pytest.approx(ssim(real, noisy).mean()) and s['ssim_worst'] == ssim(real, noisy).min()


def test_score_without_network_or_motion(real, noisy):
    s = score(real, noisy, mcs_reason='offline')
    assert s['cards']['mcs'] == {'left_out': 'offline'} and not [k for k in s if k.startswith('mcs')]
    s = score(frozen(real)[:1], noisy[:1])
    assert s['psnr_moving'] is None and s['moving_share'] == s['clips_that_move'] == 0 and s['cards']['mcs']['left_out']


def test_one_clip_has_no_halves(real, noisy, net):
    s = score(real[:1], noisy[:1], net)
    assert s['mcs_floor'] is None and s['mcs_floor_sd'] is None and s['mcs'] is not None


def test_the_mean_frame_is_the_best_still_picture(real):
    for c in (load_set('actors').frames[::9], real):
        assert (psnr(c, mean_frame(c)) > psnr(c, frozen(c))).all()


def test_controls_rank_the_known_answers(real, net):
    rows = controls(real, net)
    assert set(rows) == set(KNOWN) and rows['identical']['psnr_mean'] == CAP and rows['identical']['mcs'] is None
    assert rows['frozen']['fcs'] == pytest.approx(1)
    assert rows['frozen']['mcs'] == rows['mean frame']['mcs'] == rows['frozen']['mcs_frozen']
    assert rows['blurred']['psnr_moving'] > rows['mean frame']['psnr_moving'] > rows['frozen']['psnr_moving']
    assert 'mcs' not in controls(real)['frozen']


def test_command_writes_the_controls(npz, tmp_path, monkeypatch, capsys):
    small = load_set('chairs').subset(slice(2))
    small.frames = small.frames[:, :3, ::2, ::2]
    monkeypatch.setattr(metrics, 'load_set', lambda name, root=None: small)
    metrics.main(['--vgg', str(npz), '--out', str(tmp_path/'c.json')])
    text = (tmp_path/'c.json').read_text()
    out = json.loads(text)
    assert out['command'].startswith('python -m nvs_nb.evaluation.metrics') and out['features']['file'] == 'small.npz'
    assert str(tmp_path) not in text and str(npz.parent) not in text
    assert out['sets']['chairs']['scores']['frozen']['mcs'] > 0 and set(out['sets']['chairs']['pca']) > {*CONTROL}
    metrics.main(['--out', str(tmp_path/'d.json')])
    assert 'NVS_VGG16' in json.loads((tmp_path/'d.json').read_text())['features']['left_out']


@pytest.mark.parametrize('args', [['--vgg', 'missing.npz'], ['--root', 'missing']])
def test_command_says_what_is_wrong_in_one_line(args, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: metrics.main([*args, '--out', 'c.json'])
    err = capsys.readouterr().err
    assert e.value.code == 2 and 'missing' in err and err.count('\n') == 1 and not (tmp_path/'c.json').exists()
