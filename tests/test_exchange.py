"Masks, holes, alignment and the section of real films; a training of one step."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import choose, load_clips, load_set, to_float
from nvs_nb.data.synthetic import actor
from nvs_nb.evaluation.tables import Picture, write_pages
from nvs_nb.models.nvs import NVS
from nvs_nb.paper import exchange
from nvs_nb.paper.exchange import (
    TABLE3, TITLE, Filler, MixedPairs, NoisyCodes, WeightDecay, align, cell_kinds, cells, complete, holes, jobs,
    mask_names, matrix_clip, score_cells, score_pair, sections, stand_ins)
from nvs_nb.paper.plan import Done, Plan
from nvs_nb.training.sampler import Batch

PEOPLE = 'daria denis eli ido ira'.split()
SMALL = dict(size=32, levels=3, width=16, hidden=8, d_s=4, d_t=4, frames=6, threads=1)


@pytest.fixture(scope='module')
def actors(): return load_set('actors', size=32, frames=4)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "Weizmann's layout: five people, no skip, ido neither jumps nor bends, films of 30 frames that start when they like"
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / 'cache'))
    for a, action in enumerate(('walk', 'run', 'jump', 'bend')):
        for p, person in enumerate(PEOPLE):
            if person == 'ido' and action in ('jump', 'bend'): continue
            film = np.pad(actor(p, a, (np.arange(30) + 5 * p) / 16, 32), ((0, 0), (0, 0), (4, 4), (0, 0)), mode='edge')
            (tmp_path / 'root' / action).mkdir(parents=True, exist_ok=True)
            name = f'{person}_{action}' + '1' * (person == 'denis')  # as lena's, which have a number
            Image.fromarray(np.concatenate(film, 1)).save(tmp_path / 'root' / action / f'{name}.png')
    return tmp_path / 'root'


def test_holes_that_stay_the_same(actors):
    assert holes(actors, seed=1) == holes(actors, seed=1) != holes(actors, seed=2)
    assert len(holes(actors, 1/4).split(',')) == 9


def test_names_that_look_like_patterns(actors):
    odd = choose(actors, 'ada_*,bruno_*')
    odd.names[:3] = ['a[1]', 'a*', 'ab']
    assert choose(odd, mask_names({'walk': ['ada', 'nobody'], 'jack': ['ada']}, odd)).names == ['a[1]', 'a*']
    with pytest.raises(NvsError, match='none of the cells'): mask_names({'skip': ['ada']}, actors)


def test_cells_in_the_order_of_others(actors):
    some = choose(actors, 'bruno_bow,ada_walk')
    at = cells(actors, some)
    assert [[actors.names[i] for i in line] for line in at] == [['ada_walk', 'ada_bow'], ['bruno_walk', 'bruno_bow']]
    assert cells(some).tolist() == cells(some, some).tolist() == [[0, -1], [-1, 1]]


def test_align_finds_the_window(actors):
    film = np.concatenate([*actors.frames[:4]])  # 16 frames
    real, clip = align(film, np.stack([film[3:7] // 2, film[9:13]]))
    assert (real == film[9:13]).all() and (clip == real).all()


def test_a_perfect_model_and_a_still_one(actors):
    some = choose(actors, leave_out='ada_walk,finn_bow')
    found = score_cells(actors.frames[cells(actors)], some, actors)
    some_of = lambda line: [c for c in found['cells'] if c['line'] == line]
    unseen, nearest, moving = map(some_of, ('unseen', 'nearest', 'nearest_moving'))
    assert [c['name'] for c in unseen] == ['ada_walk', 'finn_bow'] and len(found['cells']) == 34 + 2 * 6
    assert found['means']['unseen']['psnr'] == found['means']['trained']['psnr_moving'] == 100
    assert found['means']['trained']['cells'] == 34 and found['means']['still']['cells'] == 2
    for a, b in zip(nearest, moving):  # each kind of copy is the best one by its own measure
        assert b['psnr_moving'] >= a['psnr_moving'] and a['psnr'] >= b['psnr']
    still = np.repeat(actors.frames[:1, :1], 4, 1)[0]
    assert score_pair(still, still) == dict(psnr=100, psnr_moving=None, ssim=pytest.approx(1))
    assert score_pair(*stand_ins(still, actors.frames[2:3], 4)['still'])['psnr'] == 100


def test_jobs_of_a_mask():
    assert jobs(Plan(sets=('golf',))) == []
    job, = jobs(Plan(), {'walk': ['ada'], 'bow': ['finn']})
    assert load_clips(job.config).names == ['ada_walk', 'finn_bow']


def test_the_section_of_real_films(tmp_path, root):
    plan = Plan(roots=dict(weizmann=root), changes=SMALL)
    drawn, paper = jobs(plan)
    assert paper.config.data.fit == 'squeeze' and len(drawn.config.data.leave_out.split(',')) == 3  # a sixth of 18
    done = {'weizmann/exchange': 'the disk is full'}
    clips = load_clips(paper.config, paper.root)
    assert clips.static_names == ['daria', 'denis', 'eli', 'ira'] and clips.transient_names == ['jump', 'run', 'walk']
    model = NVS(paper.config, clips.S, clips.T)
    done[paper.name] = Done(paper, tmp_path, model, paper.config, clips, dict(step=0, train_seconds=0.), False)
    section, = sections(plan, done)
    text = ' '.join(p for p in section.parts if isinstance(p, str))
    assert section.title == TITLE and 'the disk is full' in text
    assert 'No clip of ido is left' in text and 'The data has no skip' in text
    found = section.data['exchange-paper']
    assert found['no_code'] == ['ido'] and found['trained'] == clips.names
    assert not any(c['name'].startswith('ido') for c in found['cells'])
    unseen = {c['name'].rstrip('1') for c in found['cells'] if c['line'] == 'unseen'}
    assert unseen == {f'{p}_{a}' for a in clips.transient_names for p in clips.static_names if p not in TABLE3[a]}
    picture = next(p for p in section.parts if isinstance(p, Picture) and p.file.endswith('.png'))
    assert len(picture.content.axes) == 1  # generated frames only: these films are somebody's
    write_pages(tmp_path / 'out', 'x', [], [section])
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['sections'][TITLE] == section.data


def test_the_paper_says_shared_codes_itself(root):
    paper = jobs(Plan('paper', roots=dict(weizmann=root)))
    assert [j.config.data.fit for j in paper] == ['crop', 'squeeze'] and paper[0].config.model.label == 'transient'
    assert {(j.config.model.static_ids, j.config.model.transient_ids) for j in paper} == {('dataset', 'dataset')}


def test_frames_of_the_matrix(actors):
    some = choose(actors, 'ada_walk,ada_jack,bruno_walk')
    kinds = cell_kinds(some)
    assert kinds.tolist() == [['trained', 'trained'], ['trained', 'new']]
    assert cell_kinds(some, actors).tolist() == [['trained', 'trained'], ['trained', 'unseen']]
    fake = complete(NVS(make_config('actors', **SMALL), 2, 2))
    assert fake.shape == (2, 2, 6, 32, 32, 3)
    picture = matrix_clip(fake, kinds)
    assert picture.shape == (6, 74, 74, 3) and (picture[:, 2:34, 2:34] == fake[0, 0]).all()
    assert (picture[:, 40:72, 2:34] == fake[0, 1]).all()  # below: another action of the same identity


def test_the_mask_of_the_paper_by_command(tmp_path, root, monkeypatch):
    trained = []
    def score(films, some, full):
        trained.append(some.names)
        return dict(means=dict(unseen=dict(psnr=1., psnr_moving=2., both=0.)), ceiling={}, cells=[])
    monkeypatch.setattr(exchange, 'score_cells', score)
    settings = [f'{k}={v}' for k, v in SMALL.items()] + ['epochs=1']
    told = [str(root), '--frames', '8', '--out', str(tmp_path / 'book.json'), '--set', *settings, '--masks']
    exchange.main([*told, 'paper'])
    row, = (book := json.loads((tmp_path / 'book.json').read_text()))['rows'].values()
    assert row['mask'] == 'paper' and row['steps'] == 1 and '--masks paper' in book['commands'][0]
    assert {n.rstrip('1') for n in trained[0]} == {
        f'{p}_{a}' for a in ('jump', 'run', 'walk') for p in TABLE3[a] if p in PEOPLE and (p, a) != ('ido', 'jump')}
    exchange.main([*told, 'paper'])  # what is there is not made again
    assert len(trained) == 1
    with pytest.raises(NvsError, match='--masks few: expected a number, or paper'): exchange.main([*told, 'few'])


def small_model(kind, clips, **changes):
    return Filler(make_config('actors', 'exchange', **SMALL | dict(dropout=0., threads=1) | changes), clips, kind).model


@pytest.fixture(scope='module')
def some_actors(): return choose(load_set('actors', size=32, frames=6), leave_out='ada_walk,finn_bow')


def test_weight_decay_shrinks_what_gets_no_gradient(some_actors):
    model = small_model(WeightDecay, some_actors)
    G = model.optimizers()['G']
    was = {k: p.detach().clone() for k, p in model.G.named_parameters()}
    for p in model.G.parameters(): p.grad = torch.zeros_like(p)
    G.step()
    rate = {p: g['lr'] for g in G.param_groups for p in g['params']}
    for k, p in model.G.named_parameters():
        torch.testing.assert_close(p, was[k] * (1 - WeightDecay.decay * rate[p] * (p.ndim > 1)))


def test_codes_are_noisy_in_training_only(some_actors):
    model = small_model(NoisyCodes, some_actors, norm='group')
    ids = torch.tensor([0, 1]), torch.tensor([2, 3])
    draw = lambda: model(*ids)[0].detach()
    assert not torch.equal(draw(), draw())
    model.eval()
    assert torch.equal(draw(), draw()) and torch.equal(draw(), NVS.forward(model.train(False), *ids)[0])


def test_mixed_pairs_ask_for_the_other_person(some_actors):
    "Where people differ by their walls only, the truth costs nothing, and a wrong person does."
    rng = np.random.default_rng(0)
    films = rng.integers(0, 99, (6, 6, 32, 32, 3)) + 20 * np.arange(6)[:, None, None, None, None, None]
    films = films.astype(np.uint8)  # (S, T, L, H, W, 3)
    clips = replace(some_actors, frames=films[some_actors.static_id, some_actors.transient_id], digests=None)
    model, first = small_model(MixedPairs, clips), torch.arange(8)
    s, t = (torch.from_numpy(x)[first] for x in (clips.static_id, clips.transient_id))
    at = torch.tensor([[1, 4]]).expand(8, -1)
    real = torch.from_numpy(films)[s[:, None], t[:, None], at]

    def extra(person):  # what the term says of a model that draws `person(s)` in place of s
        model.forward = lambda s, t, at: (to_float(torch.from_numpy(films)[person(s)[:, None], t[:, None], at]), r)
        def loss(weight):
            model.weight = weight
            torch.manual_seed(0)
            return model.loss(Batch(s, t, real, at, torch.zeros(8, dtype=torch.int64)))[0].item()
        return loss(1.) - loss(0.)
    r = torch.zeros(8, 6, 4)
    assert extra(lambda s: s) == pytest.approx(0, abs=1e-6) and extra(lambda s: (s + 1) % 6) > .02
