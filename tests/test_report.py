"The page of a run: what it tells, names that would like to be markup, and what an interruption leaves."
import html
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips
from nvs_nb.evaluation import report, samples
from nvs_nb.evaluation.tables import Section, Table, literal, text_table, write_pages
from nvs_nb.models.build import build_model

SMALL = dict(size=32, frames=8, width=16)
NVS = make_config('chairs', levels=3, hidden=16, **SMALL)
EVIL = ['<script>alert(1)</script>', 'a|b', '*c* `d` [e](f)', '_g_\\h&amp;']


def trained(c, run, names=None):
    "Four clips, and a model that has not learnt them"
    clips = load_clips(c).subset(slice(4))
    if names: clips = replace(clips, names=names)
    torch.manual_seed(0)
    return run, build_model(c, clips.S, clips.T), c, clips


@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(samples.evaluate_run, '__defaults__', (None, False, 6))  # not 200 samples


@pytest.mark.parametrize('model', ['nvs', 'released', 'vgan', 'videovae'])
def test_pages_of_all_models_tell_device_and_precision(model, tmp_path, few, monkeypatch):
    c = NVS if model == 'nvs' else make_config('chairs', model=model, **SMALL)
    monkeypatch.setattr(report, 'device_name', lambda device: f'Abacus 3000, {device}')
    scores, made = report.finish(*trained(c.replace(precision='fp32'), tmp_path/'r'))
    stored = json.loads((tmp_path/'r/scores.json').read_text())
    assert stored == scores == report.read_scores(tmp_path/'r')
    assert (stored['device'], stored['precision'], stored['dataset']) == ('Abacus 3000, cpu', 'fp32', 'chairs')
    if model in ('nvs', 'released'):
        assert stored['pca_components'] > 20 and stored['pca_psnr_mean'] > stored['baseline_psnr_mean'] + 9
    text = (tmp_path/'r/report.html').read_text()
    if model in ('nvs', 'released'):
        assert f'the {stored["pca_components"]} principal components' in text and 'Nothing learnt yet' in text
        assert len(stored['baseline_psnr_clips']) == 4
    assert 'device: Abacus 3000, cpu' in text and 'fp32' in text and 'processor core' not in text
    assert ('random weights' in text) == (model in ('vgan', 'videovae')) and 'scores.json' in text
    for name, told in made.items():
        assert (tmp_path/'r'/name).stat().st_size > 200
        assert told in html.unescape(text) or name == 'samples/mosaic.mp4'
    for part in report.command(c), report.verdict(scores), '"precision": "fp32"', 'File sizes', 'packed with 8 bits':
        assert part in html.unescape(text), part
    assert not (tmp_path/'r/report.md').exists()


def test_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: f'GPU {device.index}')
    assert report.device_name(torch.device('cuda', 1)) == 'GPU 1'
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    assert report.device_name(torch.device('cpu')) == 'CPU (2 threads)'


def test_names_are_shown_letter_for_letter(tmp_path):
    report.finish(*trained(NVS, tmp_path/'r', EVIL))
    page = (tmp_path/'r'/'report.html').read_text()
    assert page.count('<script') == 1 and '<em>' not in page and '<i>' not in page
    cells, parser = [], HTMLParser()
    parser.handle_data = cells.append
    parser.feed(page)
    assert {*EVIL} <= {*cells}
    assert text_table([[literal(n), '', ''] for n in EVIL]).split('\n') == EVIL


def test_an_interruption_leaves_no_scores(tmp_path, monkeypatch):
    "scores.json says that all is there, so it comes last"
    def interrupted(*args, **kw): raise KeyboardInterrupt
    run = trained(NVS, tmp_path/'r')
    with monkeypatch.context() as m:
        m.setattr(report, 'write_pages', interrupted)
        with pytest.raises(KeyboardInterrupt): report.finish(*run)
    assert report.read_scores(tmp_path/'r') is None
    report.finish(*run)
    assert report.read_scores(tmp_path/'r')['dataset'] == 'chairs'


@pytest.mark.parametrize('text', ['{}', '[]', '3', '{"coverage": 1}'])
def test_other_files_are_not_scores(text, tmp_path):
    (tmp_path/'scores.json').write_text(text)
    with pytest.raises(NvsError, match='scores.json: not the scores of a run'): report.read_scores(tmp_path)


def test_few_clips_of_many_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'LISTED', 40)
    clips = load_clips(NVS)
    many = replace(clips, frames=np.repeat(clips.frames[:1], 41, 0), names=[f'n{i}' for i in range(41)],
                   static_id=np.zeros(41, int), transient_id=np.zeros(41, int), skipped=['<b>: too short'] * 21)
    report.finish(tmp_path/'r', build_model(NVS, clips.S, clips.T), NVS, many)
    text = (tmp_path/'r/report.html').read_text()
    assert 'The 40 worst of 41 clips' in text and '36 of 41 clips, evenly' in text
    assert '21 of 62 could not be used' in text and text.count('&lt;b&gt;: too short') == 21


def test_numbers_go_to_results_only_where_there_are_some(tmp_path):
    table = Table(['a'], [['1']])
    write_pages(tmp_path/'a', 't', [], [Section('s', [table])])
    write_pages(tmp_path/'b', 't', [], [Section('s', [table], dict(x=1))], dict(command='c'))
    assert not (tmp_path/'a/results.json').exists()
    assert json.loads((tmp_path/'b/results.json').read_text()) == dict(command='c', sections=dict(s=dict(x=1)))
