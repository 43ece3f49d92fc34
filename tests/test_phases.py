"Frames of one moment, squares that follow somebody, strips of another width, and what the preset `exchange` changes."
import numpy as np
import pytest
import torch
from PIL import Image

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips, load_set
from nvs_nb.data.frames import Window, follow, read_tiles
from nvs_nb.data.phases import FINES, aligned_frames, best_starts, motion_features, warp_path
from nvs_nb.data.readers import find_sources, measure
from nvs_nb.data.synthetic import actor
from nvs_nb.models.nvs import NVS, Generator, Style, generate
from nvs_nb.paper.exchange import VARIANTS, complete, fill, looks, main, moves, recognise
from nvs_nb.training.trainer import Trainer

SMALL = dict(size=32, levels=3, width=16, hidden=8, d_s=4, d_t=4, frames=6, threads=1)
SHARED = dict(static_ids='dataset', transient_ids='dataset')


def films(starts, paces, F=30, action=1):
    return np.stack([actor(i, action, s + np.arange(F) / p, 32) for i, (s, p) in enumerate(zip(starts, paces))])


@pytest.mark.parametrize('starts, paces, warp', [((0, .4, .7), (16, 16, 16), False), ((0, .4, .7), (16, 12, 20), True)])
def test_the_same_moments_are_found(starts, paces, warp):
    at = aligned_frames(films(starts, paces), [0] * 3, 10, warp)
    turns = np.array(starts)[:, None] + at / np.array(paces)[:, None]
    assert np.abs(np.exp(2j * np.pi * turns).mean(0)).mean() > .93
    assert at.min() >= 0 and at.max() < 30 and np.isin(np.diff(at), range(len(FINES)) if warp else [1]).all()


def test_each_action_by_itself_and_alone_the_most_moving_part():
    x = films((0, .5), (16, 16))
    both = aligned_frames(np.concatenate([x, films((.2, .6), (16, 16), action=2)]), [7, 7, 3, 3], 10, False)
    assert (both[:2] == aligned_frames(x, [0, 0], 10, False)).all()
    still = np.concatenate([x[0, :1].repeat(12, 0), x[0, :18]])
    assert aligned_frames(still[None], [0], 10)[0, 0] >= 10
    assert aligned_frames(x[:, :6] * 0, [0, 0], 6).tolist() == [[*range(6)]] * 2  # nothing moves: anything will do


def test_the_cheapest_path_is_the_cheapest():
    rng = np.random.default_rng(0)
    cost = rng.random((4, 6)).astype(np.float32)
    paths = [(a, a + i, a + i + j, a + i + j + k) for a in range(6) for i in range(3) for j in range(3) for k in range(3)]
    fined = lambda p: sum(cost[i, f] for i, f in enumerate(p)) + cost.mean() * sum(FINES[d] for d in np.diff(p))
    assert tuple(warp_path(cost)) == min((p for p in paths if p[-1] < 6), key=fined)


@pytest.mark.parametrize('wrong, told', [(dict(L=31), 'L must be'), (dict(groups=[0]), 'groups: 1 numbers for 2 clips'),
                                         (dict(frames=np.zeros((2, 30, 24, 24, 3), np.uint8)), 'multiples of 16')])
def test_what_cannot_be_aligned(wrong, told):
    with pytest.raises(NvsError, match=told):
        aligned_frames(**dict(frames=films((0, .5), (16, 16)), groups=[0, 0], L=4) | wrong)


def test_a_configuration_asks_for_it():
    c = make_config('actors', **SMALL, window='aligned', read_frames=20, leave_out='ada_bow', **SHARED)
    clips, read = load_clips(c), load_clips(c.replace(window='first'))
    at = aligned_frames(read.frames, read.transient_id, 6, False)
    assert (clips.frames == read.frames[np.arange(35)[:, None], at]).all() and clips.names == read.names
    t = Trainer(c.replace(epochs=1), clips, device='cpu', progress=False).fit()
    assert t.step == 2 and clips.fingerprint() != read.fingerprint()


# ---- frames

def walker(F=24, W=120, start=100, step=-3):
    x = np.full((F, 48, W, 3), 90, np.uint8)
    for i in range(F): x[i, 16:32, start + step*i:start + step*i + 6] = 230
    return x


def test_a_square_that_follows():
    x = walker()
    for right, side in (False, 0), (True, 1):
        out = follow(x, 32, right)
        at = [np.nonzero(f[..., 0] > 180)[1].mean() for f in out]
        assert out.shape == (24, 32, 32, 3) and np.abs(np.array(at) - 15.5).max() < 2
    ahead = walker(start=10, step=3)
    assert (follow(ahead, 32, True) == follow(ahead, 32)).all()          # it goes to the right already
    assert (follow(x, 32, True) == follow(x[:, :, ::-1], 32)).all()
    nothing = follow(x[:1].repeat(3, 0), 48)
    assert (nothing == x[0, :, 36:84]).all()                             # nothing moves: the centre


def test_fit_person_of_a_set(tmp_path):
    (tmp_path/'walk').mkdir()
    for name in 'ada', 'bob': Image.fromarray(np.concatenate(walker(), 1)).save(tmp_path/'walk'/f'{name}_walk.png')
    one = load_set('weizmann', tmp_path, 32, 16, fit='person', tile=120, cache=False)
    assert one.frames.shape == (2, 16, 32, 32, 3) and np.ptp(one.frames[0].max((1, 2))[..., 0].astype(int)) < 40


def test_the_width_of_tiles(tmp_path):
    (tmp_path/'bend').mkdir()
    path = tmp_path/'bend'/'ada_bend.png'
    Image.fromarray(np.concatenate([np.full((64, 64, 3), i, np.uint8) for i in range(61)], 1)).save(path)  # 3904 pixels
    read = lambda **kw: read_tiles(path, 'x', Window(4), 64, **kw)
    assert read(aspect=80/64)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]       # no whole number of 80, so squares
    with pytest.raises(NvsError, match='not a whole number of frames of 80 pixels; if its frames have another width'):
        read(tile=80)
    source, = find_sources('weizmann', tmp_path, tile=61)[0]
    assert source.read.keywords['tile'] == 61 and measure(source) == (64, (61, 64))
    with pytest.raises(NvsError, match='tile=64: for the strips of weizmann and golf'): find_sources('folder', tmp_path, 64)
    with pytest.raises(NvsError, match='tile 64: the actors are drawn'): load_set('actors', tile=64)
    c = make_config('weizmann', frames=4, tile=64)
    assert load_clips(c, tmp_path).frames[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]


# ---- the model

def test_a_style_leaves_the_layout_to_the_path():
    G = Generator(7, 32, 16, style=4)
    assert G.net[0].weight.shape[0] == 3 and sum(isinstance(m, Style) for m in G.net) == 3
    x = torch.randn(2, 8, 4, 4)
    s = Style(4, 8)
    for p in s.parameters(): p.data.zero_()
    assert (s(x, torch.randn(2, 4)) == x).all()
    s.linear.bias.data[:8] = 1.
    assert (s(x, torch.randn(2, 4)) == 2 * x).all()


def test_dropout_is_a_function_of_seed_and_step_and_off_in_the_end():
    c = make_config('actors', **SMALL, **SHARED, style=True, dropout=.5, epochs=1, keep='ada_*,bruno_*')
    clips = load_clips(c)
    a, b = (Trainer(c, clips, device='cpu', progress=False) for _ in range(2))
    torch.rand(5)
    a.fit(), torch.rand(7), b.fit()
    assert a.model.NOISE and (generate(a.model, [0], [1]) == generate(b.model, [0], [1])).all()
    plain = Trainer(c.replace(dropout=0.), clips, device='cpu', progress=False).fit()
    assert not plain.model.NOISE and (generate(a.model, [0], [1]) != generate(plain.model, [0], [1])).any()


# ---- who and what

def test_people_and_actions_are_recognised():
    clips = load_set('actors', size=32, frames=12)
    test = np.arange(36) % 5 == 0
    for labels, features in (clips.static_id, looks), (clips.transient_id, moves):
        found = recognise(clips.frames[~test], labels[~test], clips.frames[test], features)
        assert (found == labels[test]).sum() >= 6  # of 8
        wrong = recognise(clips.frames[~test], np.roll(labels[~test], 7), clips.frames[test], features)
        assert (wrong == labels[test]).mean() < .5
    with pytest.raises(NvsError, match='labels'): recognise(clips.frames, [0], clips.frames, looks)


def test_the_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('NVS_CACHE', str(tmp_path/'cache'))
    for a, action in enumerate(('walk', 'jack', 'bow', 'wave')):
        (tmp_path/'root'/action).mkdir(parents=True)
        for p in range(4):
            film = actor(p, a, (np.arange(12) + 3 * p) / 12, 32)
            Image.fromarray(np.concatenate(film, 1)).save(tmp_path/'root'/action/f'p{p}_{action}.png')
    tiny = [f'{k}={v}' for k, v in dict(SMALL, epochs=1).items() if k != 'threads']
    args = [str(tmp_path/'root'), '--variants', 'exchange;no dropout', '--frames', '10', '--out',
            str(tmp_path/'x.json'), '--set', *tiny]
    main(args)
    assert 'no dropout, mask 0, seed 0' in capsys.readouterr().out and (tmp_path/'x-exchange.webp').exists()
    main(args)
    assert capsys.readouterr().out == ''  # what is there is not made again
    films, some, full, row = fill(tmp_path/'root', 'exchange', read=10, **dict(SMALL, epochs=1))
    assert len(some) == 12 and len(full) == 16 and full.L == 10 and some.L == 6
    assert {*row['means']} == {'trained', 'unseen', 'nearest', 'nearest_moving', 'same_person', 'same_action', 'still'}
    assert row['means']['same_person']['cells'] == 4 and 0 <= row['ceiling']['both'] <= 1
    assert row['means']['same_action']['what'] >= row['means']['same_person']['what']
    with pytest.raises(NvsError, match='variant'): fill(tmp_path/'root', 'nonsense')
