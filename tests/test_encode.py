"Clips that a run has never seen: their codes, a generator tuned for them, parts filled in, a dictionary that grows."
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvs_nb import cli
from nvs_nb.bench import encode as bench
from nvs_nb.config import make_config
from nvs_nb.core import NvsError, read_json
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation.metrics import psnr
from nvs_nb.models.build import build_model
from nvs_nb.models.encode import (Codes, coarse, draw_codes, encode, guess, learnt_codes, seen_without, shrunk_gaussian,
                                  tune, with_clips)
from nvs_nb.models.nvs import generate
from nvs_nb.paper.interpolation import between
from nvs_nb.training.checkpoint import open_run, run_clips
from nvs_nb.training.trainer import Trainer
from nvs_nb.viz import save_strip


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NVS_CACHE', str(tmp_path/'.cache'))


@pytest.fixture(scope='module')
def learnt(tmp_path_factory):
    "A run on 16 of the 18 chairs, small but trained; and the two others"
    every = load_set('chairs', size=32, frames=4)
    names = [every.names[i] for i in (3, 11)]
    c = make_config('chairs', size=32, frames=4, width=32, hidden=16, d_s=24, d_t=12, levels=3, batch=16, threads=1,
                    epochs=40, precision='fp32', leave_out=','.join(names))
    some = every.subset([i for i in range(18) if i not in (3, 11)]).with_ids('clip', 'clip')
    path = tmp_path_factory.mktemp('encode')/'run'
    Trainer(c, some, path, device='cpu', progress=False).fit()
    return path


@pytest.fixture
def run(learnt, tmp_path): return Path(shutil.copytree(learnt, tmp_path/'run'))


@pytest.fixture(scope='module')
def opened(learnt): return open_run(learnt)


@pytest.fixture(scope='module')
def new(opened): return bench.unseen_clips(opened)


@pytest.fixture(scope='module')
def ids(opened): return opened.about['static_id'], opened.about['transient_id']


@pytest.fixture(scope='module')
def codes(opened, new, ids): return encode(opened.model, new.frames, *ids, steps=60)


def refused(do, *args, told='', **kw):
    with pytest.raises(NvsError) as e: do(*args, **kw)
    line = str(e.value)
    assert '\n' not in line and len(line) < 400 and told in line, line


# ---- codes

def test_only_clips_that_the_run_does_not_know(opened, new):
    assert len(new) == 2 and not {*new.names} & {*opened.about['names']} and new.frames.shape[1] == 4


def test_search_beats_every_known_clip(opened, new, ids, codes):
    known = run_clips(opened).frames
    found = psnr(new.frames, draw_codes(opened.model, codes))
    best = [max(psnr(known, np.broadcast_to(clip, known.shape))) for clip in new.frames]
    assert (found > np.array(best) + 1).all(), (found, best)


def test_search_changes_no_weight_and_stays_in_the_ball(opened, new, ids, codes):
    before = {k: x.clone() for k, x in opened.model.state_dict().items()}
    opened.model.train()
    try:
        again = encode(opened.model, new.frames, *ids, steps=60)
        assert opened.model.training and all(p.requires_grad for p in opened.model.parameters())
    finally: opened.model.eval()
    assert all(torch.equal(x, before[k]) for k, x in opened.model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(again, codes))  # a function of its arguments
    assert all(z.norm(dim=-1).max() < 1.0001 for z in codes)


def test_known_clips_are_found_again(opened, ids):
    "What the model draws itself has an exact code, and the start is near it"
    drawn = generate(opened.model, *ids)[:3]
    found = draw_codes(opened.model, encode(opened.model, drawn, *ids, steps=60, weight=0.))
    assert psnr(drawn, found).min() > 30


def test_a_clip_does_not_depend_on_its_neighbours(opened, new, ids):
    "Batches of one, or both at once: the same up to the frames that are drawn"
    a, b = (draw_codes(opened.model, encode(opened.model, new.frames, *ids, steps=40, batch=n)) for n in (1, 2))
    assert abs(psnr(new.frames, a) - psnr(new.frames, b)).max() < 1


def test_regression_of_a_mixture_is_the_mixture():
    x, z = torch.rand(5, 2, 3, 4, 4), Codes(torch.randn(5, 6), torch.randn(5, 2, 3))
    share = torch.tensor([.5, .3, .2, 0, 0])
    clip = torch.einsum('n,n...->...', share, x)[None]
    for there in (torch.ones(1, 2, 1, 4, 4), torch.ones(1, 2, 1, 4, 4).tril()):
        found = guess(x, z, clip, there, ridge=1e-6)
        for a, b in zip(found, z): torch.testing.assert_close(a[0], torch.einsum('n,n...->...', share, b), atol=2e-3, rtol=0)


def test_coarse_is_the_mean_of_what_is_seen():
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 32, 32, 3)).astype(np.uint8)
    seen = np.ones((1, 2, 32, 32), bool)
    seen[0, 0, 0, 0], seen[0, 1, :2, :2] = False, False
    x, there = coarse(frames, seen)
    np.testing.assert_allclose(x[0, 0, :, 0, 0], frames[0, 0, :2, :2].reshape(4, 3)[1:].mean(0) / 255, rtol=1e-5)
    np.testing.assert_allclose(x[0, 1, :, 5, 7], frames[0, 1, 10:12, 14:16].reshape(4, 3).mean(0) / 255, rtol=1e-5)
    assert there[0, 0].all() and there.sum() == 2 * 256 - 1 and not x[0, 1, :, 0, 0].any()


def test_shrunk_gaussian():
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3., 1., .3])
    g = shrunk_gaussian(x, 2000)
    torch.testing.assert_close(g.covariance_matrix.diagonal(), torch.tensor([9., 1., .09]), rtol=.15, atol=.05)
    few = shrunk_gaussian(x[:3].repeat(1, 30))  # fewer vectors than dimensions
    assert torch.isfinite(few.log_prob(x[:1].repeat(1, 30))).all() and few.sample((2,)).shape == (2, 90)
    assert torch.isfinite(shrunk_gaussian(x[:1]).sample()).all()


# ---- tuning

def test_tuning_draws_new_clips_better_and_keeps_the_old_ones(opened, new, ids, codes):
    model = tune(opened.model, new.frames, codes, *ids, steps=60)
    a, b = (psnr(new.frames, draw_codes(m, codes)) for m in (opened.model, model))
    assert (b > a + 2).all(), (a, b)
    known = run_clips(opened).frames
    kept = psnr(known, generate(model, *ids)) - psnr(known, generate(opened.model, *ids))
    careless = tune(opened.model, new.frames, codes, *ids, steps=60, replay=0)
    lost = psnr(known, generate(careless, *ids)) - psnr(known, generate(opened.model, *ids))
    assert kept.mean() > -.3 > -.8 > lost.mean(), (kept, lost)
    for part in 'ZR':
        for x, y in zip(getattr(opened.model, part).parameters(), getattr(model, part).parameters()): assert torch.equal(x, y)


# ---- what is hidden

@pytest.mark.parametrize('hide, where', [('left', np.s_[:, :, :16]), ('bottom', np.s_[:, 16:]), ('2-3', np.s_[1:3]),
                                         ('4', np.s_[3:4])])
def test_what_is_hidden(hide, where):
    seen = seen_without(hide, 4, 32)
    assert not seen[where].any() and (~seen).sum() == seen[where].size


@pytest.mark.parametrize('hide', ['', 'middle', '0', '0-2', '3-2', '2-5', '5', '-1', '1-', 'left right', '9' * 40])
def test_what_cannot_be_hidden(hide): refused(seen_without, hide, 4, 32, told='hide')


def test_hidden_frames_are_faded():
    "Linear motion comes back; at the ends a frame is repeated"
    real = np.zeros((1, 6, 2, 2, 3), np.uint8) + np.arange(0, 60, 10, dtype=np.uint8)[:, None, None, None]
    seen = np.ones((1, 6, 2, 2), bool)
    seen[:, [0, 2, 3]] = False
    assert bench.faded(real, seen)[0, :, 0, 0, 0].tolist() == [10, 10, 20, 30, 40, 50]


def test_hidden_pixels_do_not_count(opened, new, ids):
    "Noise where nothing is seen changes nothing; a hidden half is filled better than by the nearest clip"
    seen, noisy = seen_without('right', 4, 32), new.frames.copy()
    noisy[:, ~seen] = np.random.default_rng(0).integers(0, 256, noisy[:, ~seen].shape)
    a, b = (encode(opened.model, x, *ids, seen=seen, steps=30) for x in (new.frames, noisy))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    found = bench.encode_clips(opened, new, run_clips(opened), seen, steps=60)
    assert found.told['mean']['codes']['psnr_hidden'] > found.told['mean']['nearest']['psnr_hidden']
    tuned = [tune(opened.model, x, a, *ids, seen, steps=2) for x in (new.frames, noisy)]
    assert all(torch.equal(x, y) for x, y in zip(*(m.parameters() for m in tuned)))


@pytest.mark.parametrize('seen', [np.zeros((4, 32, 32), bool), np.ones((4, 32, 32)), np.ones((3, 32, 32), bool), 'x', 3])
def test_masks_that_cannot_be(opened, new, ids, seen):
    refused(encode, opened.model, new.frames, *ids, seen=seen, told='seen')


# ---- a dictionary that grows

def test_new_clips_get_a_place(opened, new, codes):
    model, about = with_clips(opened.model, opened.about, codes, new.names)
    n = len(opened.about['names'])
    assert about['names'][n:] == new.names and about['static_id'][n:] == [n, n + 1]
    np.testing.assert_array_equal(generate(model, about['static_id'][n:], about['transient_id'][n:]),
                                  draw_codes(opened.model, codes))
    np.testing.assert_array_equal(generate(model, [0, 5], [0, 5]), generate(opened.model, [0, 5], [0, 5]))
    refused(with_clips, opened.model, opened.about, codes, opened.about['names'][:2], told='two clips')
    refused(with_clips, opened.model, opened.about, codes, new.names[:1], told='names')


@pytest.mark.parametrize('name', ['released', 'label', 'vgan'])
def test_models_that_cannot_encode(name, new):
    change = dict(released=dict(preset='released'), label=dict(label='static'), vgan=dict(model='vgan', frames=8))[name]
    model = build_model(make_config('chairs', **dict(size=32, frames=4, width=16) | change), 2, 2)
    refused(encode, model, new.frames, [0], [0], told='model')


# ---- the command

def nvs(*args, capsys):
    code = cli.main([str(a) for a in args])
    return code, *capsys.readouterr()


def test_command_keeps_new_clips(run, capsys, monkeypatch, small_vgg):
    monkeypatch.setattr(bench, 'encode', lambda *a, **k: encode(*a, **k | dict(steps=5, starts=1)))
    monkeypatch.setattr(bench, 'tune', lambda *a, **k: tune(*a, **k, steps=2))
    code, out, err = nvs('encode', run, '--tune', '--keep', '--name', 'more', capsys=capsys)
    assert code == 0, err
    told = read_json(run/'encoded/encoded.json')
    names = [x['name'] for x in told['each']]
    assert len(names) == 2 and all(n in out for n in names) and {*told['mean']} == {'nearest', 'codes', 'tuned'}
    assert (run/'encoded/all.gif').exists() and (run/f'encoded/{names[0]}.png').exists()
    assert {*told['success']} == {*told['mean']} and 'change' in told['dictionary']
    code, out, err = nvs('generate', 'more', '--clip', names[1], '--format', 'gif', capsys=capsys)
    assert code == 0 and (Path('runs/more/generated')/f'{names[1]}.gif').exists(), err
    r = open_run('more')
    i, j = (r.about['names'].index(n) for n in names)
    assert between(r.model, [i], [j], [.5]).shape == (1, 1, 32, 32, 3)          # interpolation
    assert generate(r.model, [i], [0]).shape == (1, 4, 32, 32, 3)              # exchange
    code, out, err = nvs('encode', 'more', capsys=capsys)                      # and now it knows all of them
    assert code == 2 and 'does not know; give a folder with others (--root)' in err
    assert nvs('evaluate', 'more', capsys=capsys)[0] == 0                      # of those that it was trained on


def test_clips_of_a_folder(run, capsys, monkeypatch):
    "Another layout of files; a name that is taken; a hidden part"
    monkeypatch.setattr(bench, 'encode', lambda *a, **k: encode(*a, **k | dict(steps=3, starts=1, draws=0)))
    name, clip = open_run(run).about['names'][0], load_set('actors', size=32, frames=4).frames[7]
    for i, frame in enumerate(clip): save_strip(f'mine/{name}/{i}.png', frame[None])
    code, out, err = nvs('encode', run, '--root', 'mine', '--dataset', 'folder', '--hide', 'right', '--out', 'here',
                         capsys=capsys)
    assert code == 0, err
    assert f'{name}-2' in out and 'hidden' in out and Path('here/all.gif').exists() and not Path('runs').exists()


BAD = {'encode': 'RUN', 'encode none': 'none', 'encode run --hide middle': "--hide 'middle'", 'encode run --hide 3-9': '--hide',
       'encode run --name x': '--keep', 'encode run --keep --name ../up': '--name', 'encode run --dataset films': 'films',
       'encode run --root nowhere': 'nowhere', 'encode run --device tpu': '--device', 'encode run --out thesis': '--out',
       'encode pretrained': 'does not know', 'encode run --keep --runs . --name run': 'taken'}


@pytest.mark.parametrize('line', BAD)
def test_bad_option(line, run, capsys):
    Path('thesis').write_text('all my work')
    code, out, err = nvs(*line.split(), capsys=capsys)
    assert code == 2 and err.startswith('nvs: ') and err.count('\n') == 1 and BAD[line] in err and 'Traceback' not in err
    assert {p.name for p in Path().iterdir()} <= {'run', 'thesis', '.cache'} and not (run/'encoded').exists()


def test_benchmark(run, monkeypatch, capsys):
    monkeypatch.setattr(bench, 'encode', lambda *a, **k: encode(*a, **k | dict(steps=3, starts=1, draws=0)))
    monkeypatch.setattr(bench, 'tune', lambda *a, **k: tune(*a, **k, steps=1))
    bench.main([str(run), '--hide', '2', '--pace', '--out', 'x.json'])
    book = json.loads(Path('x.json').read_text())
    assert book['command'] == 'python -m nvs_nb.bench.encode RUN --hide 2 --pace --out x.json'
    assert [p['clips'] for p in book['pace']] == [1, 10, 100] and book['hidden']['2']['mean']['codes']['psnr_hidden'] > 0
    assert book['known'] == 16
    size = open_run(run).config.data.size
    for name, columns in (('x', 2), ('x-2', 1)):  # codes, tuned: no frame of the clips themselves
        with Image.open(f'{name}.gif') as film: assert film.width == columns*size + 2*(columns - 1)
