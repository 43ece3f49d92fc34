"Masks, holes, alignment and the section of real films; no training."
import json

import numpy as np
import pytest
from PIL import Image

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import choose, load_clips, load_set
from nvs_nb.paper.exchange import (TABLE3, TITLE, align, cells, complete, explore, holes, jobs, kinds, mask_settings, matrix_clip,
                             read_mask, score_cell, score_cells, sections)
from nvs_nb.paper.plan import Done, Plan
from nvs_nb.models.nvs import NVS
from nvs_nb.evaluation.tables import Picture, Table, write_pages
from nvs_nb.data.synthetic import actor

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
    left = choose(odd, leave_out=mask_settings({'walk': [], 'jack': [], 'wave': ['ada', 'bruno']}, odd)['leave_out'])
    assert 'ab' in left.names and not {'a[1]', 'a*'} & {*left.names} and len(left) == 8


@pytest.mark.parametrize('text, why', [
    ('  ada bruno\nwalk x', 'walk needs 2 marks'), ('ada bruno\nwalk x y', "not 'x y'"), ('{"walk": "ada"}', 'a list of names'),
    ('{"walk": [1]}', 'a list of names'), ('{"walk"', 'not readable as JSON'), (None, 'cannot be read')])
def test_masks_that_are_wrong(tmp_path, text, why):
    if text: (tmp_path / 'mask.txt').write_text(text)
    with pytest.raises(NvsError, match=why): read_mask(tmp_path / 'mask.txt')


def test_masks_in_both_forms(tmp_path, actors):
    (tmp_path / 'a.txt').write_text('   ada finn\n\nwalk • .\nbow x  x\n', encoding='utf-8')
    (tmp_path / 'a.json').write_text('{"walk": ["ada"], "bow": ["ada", "finn", "nobody"]}')
    told = [mask_settings(read_mask(tmp_path / f'a.{kind}'), actors) for kind in ('txt', 'json')]
    assert told[0] == told[1] and choose(actors, **told[0]).names == ['ada_walk', 'ada_bow', 'finn_bow']
    with pytest.raises(NvsError, match='none of the cells'): mask_settings({'skip': ['ada']}, actors)


def test_align_finds_the_window(actors):
    film = np.concatenate([*actors.frames[:4]])  # 16 frames
    real, clip = align(film, np.stack([film[3:7] // 2, film[9:13]]))
    assert (real == film[9:13]).all() and (clip == real).all()


def test_a_perfect_model_and_a_still_one(actors):
    some = choose(actors, leave_out='ada_walk,finn_bow')
    found = score_cells(actors.frames[cells(actors)], some, actors)
    assert [c['name'] for c in found['cells'] if not c['trained']] == ['ada_walk', 'finn_bow']
    assert found['means']['unseen']['psnr'] == found['means']['trained']['psnr_moving'] == 100
    for c in found['cells']:  # the copy by motion is at least as good as the other one there
        if not c['trained']: assert c['nearest_moving_psnr_moving'] >= c['nearest_psnr_moving'] and c['nearest_psnr'] >= c['nearest_moving_psnr']
    still = np.repeat(actors.frames[:1, :1], 4, 1)[0]
    told = score_cell(still, actors.frames[1], {'other': actors.frames[2]})
    assert told['psnr_moving'] is None and told['still_psnr'] == 100 and told['nearest'] == 'other'


def test_jobs_of_a_mask(tmp_path, root):
    assert jobs(Plan(sets=('golf',))) == []
    (tmp_path / 'mask.json').write_text('{"walk": ["ada"], "bow": ["finn"]}')
    for mask in (str(tmp_path / 'mask.json'), '*_[!wb]*,*_wave,ada_b*,[b-f]*_w*,[b-e]*_b*'):
        job, = jobs(Plan(), mask)
        assert load_clips(job.config).names == ['ada_walk', 'finn_bow']
    given = Plan(roots=dict(weizmann=root), changes=dict(SMALL, label='static', transient_ids='clip'))
    with pytest.raises(NvsError, match='holes'): jobs(given)  # rows of their own, as asked for: there is no matrix
    paper = jobs(Plan('paper', roots=dict(weizmann=root)), 'eli_run')
    assert [j.config.data.fit for j in paper] == ['crop', 'whole'] and paper[0].config.model.label == 'transient'


def test_the_section_of_real_films(tmp_path, root):
    plan = Plan(roots=dict(weizmann=root), changes=SMALL)
    drawn, paper = jobs(plan)
    assert paper.config.data.fit == 'whole' and len(drawn.config.data.leave_out.split(',')) == 3  # a sixth of 18
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
    assert found['no_row'] == ['ido'] and {c['identity'] for c in found['cells']} == {*clips.static_names}
    unseen = {(c['action'], c['identity']) for c in found['cells'] if not c['trained']}
    assert unseen == {(a, p) for a in ('walk', 'run', 'jump') for p in clips.static_names if p not in TABLE3[a]}
    assert all(c['nearest'] in clips.names for c in found['cells'] if not c['trained'])
    mask = next(p for p in section.parts if isinstance(p, Table))
    assert {row[0]: row[1:] for row in mask.rows}['walk'] == ['•', '•', '○', '×', '•']
    picture = next(p for p in section.parts if isinstance(p, Picture) and p.file.endswith('.png'))
    assert len(picture.content.axes) == 1  # generated frames only: these films are somebody's
    write_pages(tmp_path / 'out', 'x', [], [section])
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['sections'][TITLE] == section.data


def test_the_widget_shows_what_is_pressed(actors):
    pytest.importorskip('ipywidgets')
    some = choose(actors, leave_out='bruno_jack')
    model = NVS(make_config('actors', **{**SMALL, 'frames': 4}), 6, 6)
    box = explore(model, some, actors)
    buttons, said, film = box.children
    assert 'bruno' in said.value and 'unseen' in said.value
    before = film.value
    next(b for b in buttons.children if getattr(b, 'tooltip', '') == 'trained').click()
    assert 'ada' in said.value and 'walk' in said.value and film.value[:3] == b'GIF' and film.value != before


def test_frames_of_the_matrix(actors):
    some = choose(actors, 'ada_walk,ada_jack,bruno_walk')
    kind = kinds(some)
    assert kind.tolist() == [['trained', 'trained'], ['trained', 'new']]
    fake = complete(NVS(make_config('actors', **SMALL), 2, 2))
    assert fake.shape == (2, 2, 6, 32, 32, 3)
    picture = matrix_clip(fake, kind)
    assert picture.shape == (6, 74, 74, 3) and (picture[:, 2:34, 2:34] == fake[0, 0]).all()
    assert (picture[:, 40:72, 2:34] == fake[0, 1]).all()  # below: another action of the same identity
