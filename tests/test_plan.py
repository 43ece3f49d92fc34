"Trainings side by side: stopped, killed, damaged, failed, asked for again; and the report that is made of them."
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from nvs_nb.config import make_config
from nvs_nb.core import NvsError, read_json
from nvs_nb.paper.plan import Job, Plan, job_path, open_job, run_jobs
from nvs_nb.evaluation.tables import Picture, Section, write_pages
from nvs_nb.training.checkpoint import load_checkpoint

TOY = dict(size=32, frames=4, levels=2, width=16, hidden=8, d_s=8, d_t=4)
FLAGS = [x for k, v in TOY.items() for x in ('--set', f'{k}={v}')]


def toy(name, **changes): return Job(name, make_config('chairs', **{**TOY, 'epochs': 4, **changes}))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, jobs_here):
    for name in ('NVS_DATA', 'NVS_VGG16', 'NVS_CACHE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(jobs, **kw): return run_jobs(jobs, 'runs', 'cpu', progress=False, **kw)


def test_done_once_and_mended():
    "What is finished is left alone; lost scores are computed again without training"
    job = toy('a')
    assert run([job, toy('b'), toy('a')]) == {'a': '', 'b': ''}
    path = job_path(job, 'runs')
    weights, scores = (path/'checkpoint.pt').read_bytes(), read_json(path/'scores.json')
    stamp = (path/'scores.json').stat().st_mtime_ns
    assert run([job]) == {'a': ''} and (path/'scores.json').stat().st_mtime_ns == stamp
    (path/'scores.json').write_text('{"psnr')
    assert run([job]) == {'a': ''} and (path/'checkpoint.pt').read_bytes() == weights
    again, moving = read_json(path/'scores.json'), ('cards', 'device')
    assert {k: v for k, v in again.items() if k not in moving} == {k: v for k, v in scores.items() if k not in moving}
    done = open_job(job, 'runs')
    assert done.embedded and done.scores['step'] == 4 and again['cards']['mcs']['weights_seed'] == 0
    assert done.scores['clips_seen'] == 4 * len(done.clips) and done.scores['device'].startswith('CPU')


def test_the_folder_is_the_hash():
    "Other settings are another folder; the machine's are not part of it; the precision is decided before"
    a = job_path(toy('a'), 'runs')
    assert a == job_path(toy('a'), 'runs') == job_path(toy('a', threads=1), 'runs')
    assert a != job_path(toy('a', lr_g=1e-4), 'runs')
    assert toy('a').config.precision != 'auto' and a.name == f'a-{toy("a").config.hash()}'


def test_failure_is_told_and_others_go_on():
    bad = toy('bad', loss='mse', output='linear', norm='none', g_init='fan', lr_z=1e4,
              latent_opt='sgd', code_norm='none', epochs=300)
    lost = Job('lost', make_config('chair-cad', **TOY), 'no/such/place')
    told = run([bad, lost, toy('good')])
    assert told['good'] == '' and 'is not finite' in told['bad'] and 'no/such/place' in told['lost']
    with pytest.raises(NvsError, match='not finished'): open_job(bad, 'runs')


def test_bad_feature_network_is_told_at_once():
    Path('vgg.npz').write_text('no weights')
    with pytest.raises(NvsError, match='vgg.npz: not an .npz'): run([toy('a')], vgg='vgg.npz')
    assert not Path('runs').exists()


def run_long():
    os.setsid()
    try: run_jobs([toy(n, epochs=10**6) for n in 'ab'], 'runs', 'cpu', side_by_side=2, progress=False)
    except KeyboardInterrupt as e: sys.exit(f'stopped: {e}')


def test_stopped_and_continued(fork):
    "Processes end with the one that started them; the same call goes on at once, alone; a signal saves every training"
    steps = lambda: [[json.loads(line)['step'] for line in p.read_text().splitlines()]
                     for p in sorted(Path('runs').glob('*/metrics.jsonl'))]
    def begin(lines):  # the parent, when each training has told so much more
        process = fork(run_long)
        while len(steps()) < 2 or min(map(len, steps())) < lines:
            assert process.poll() is None, process.result()
            time.sleep(.05)
        return process
    killed = begin(2)
    killed.kill()
    again = begin(min(map(len, steps())) + 2)  # while those left alone may still be saving
    with pytest.raises(NvsError, match=f'number {again.pid}.* at work there'): run([toy('a'), toy('c')])
    os.killpg(again.pid, signal.SIGINT)  # as the terminal does: all processes hear it
    told = again.result()
    assert told.code == 1 and 'stopped: the trainings in' in told.err and 'Traceback' not in told.err
    for path, told in zip(sorted(Path('runs').glob('*/checkpoint.pt')), steps(), strict=True):
        assert told == sorted({*told}) and load_checkpoint(path)['trainer']['step'] == told[-1]  # by one at a time
    assert not [*Path('runs').glob('*/scores.json')]


def test_plan():
    with pytest.raises(NvsError, match='--scale huge: choose demo, short, paper'): Plan('huge')
    for changes, word in ((dict(preset='fast'), '--scale'), ({'budget.seconds': 3}, '--seconds'),
                          (dict(model='vgan'), '--only baselines'), ({'data.dataset': 'golf'}, 'SET'),
                          (dict(wdith=3), "did you mean 'width'")):
        with pytest.raises(NvsError, match=word): Plan(changes=changes)
    plan = Plan('paper', roots=dict(weizmann='w', golf='g'))
    assert [plan.dataset(b) for b in plan.sets] == ['chairs', 'weizmann', 'golf'] and plan.embedded('chairs')
    c = plan.job('weizmann', 'full').config
    assert (c.preset, c.budget.seconds, c.budget.epochs, c.model.label, c.model.static_ids, c.data.window) == (
        'paper', 0., 700, 'transient', 'dataset', 'crop')
    assert plan.job('golf', 'x').root == 'g' and plan.job('golf', 'x').config.data.draw == 500
    assert Plan('short', seconds=80.).job('golf', 'x', share=.5).config.budget.seconds == 40
    plan = Plan(changes=dict(width=32, hidden=16, d_width=8))  # each model takes those that it has
    nvs, vgan = plan.job('chairs', 'x').config.model, plan.job('chairs', 'y', model='vgan').config.model
    assert (nvs.width, nvs.hidden, vgan.width, vgan.d_width) == (32, 16, 32, 8)


def nvs(*args):
    from nvs_nb.cli import main
    return main([str(a) for a in args])


def test_reproduce(capfd):
    "A page for one set, with tables, pictures and numbers; made again at once; nothing of it outside its folders"
    args = ['reproduce', 'golf', '--seconds', 1, '--device', 'cpu', *FLAGS]
    assert nvs(*args) == 0
    out = Path('runs/reproduce-demo/report-golf')
    text, page, book = (out/'report.md').read_text(), (out/'report.html').read_text(), read_json(out/'results.json')
    for title in ('Table 1: kinds of methods', 'Table 2: Golf', 'Figure 5: Golf', 'Supplement, Table 2: settings',
                  'All trainings'):
        assert f'## {title}' in text and f'>{title}</a></h2>' in page and title in book['sections']
    here = book['sections']['Table 2: Golf']['here']
    assert set(here) == {'without', 'full', 'glo'} and f'{here["full"]["psnr_mean"]:.2f}' in text
    assert read_json(next(Path('runs').glob('*/golf/full-*/scores.json')))['device'] in text
    for name in re.findall(r'!\[[^]]*\]\(([^)]*)\)', text):
        assert (out/name).stat().st_size > 500 and f'src="{name}"' not in page
    assert 'In one minute' in page and 'Best clip of Golf' in page and 'nvs reproduce golf --scale demo' in page
    assert {p.name for p in Path().iterdir()} == {'runs'}
    before = {p: p.stat().st_mtime_ns for p in Path('runs').rglob('checkpoint.pt')}
    capfd.readouterr()
    assert nvs(*args) == 0
    assert {p: p.stat().st_mtime_ns for p in Path('runs').rglob('checkpoint.pt')} == before
    assert len(before) == 3  # full, without two losses, GLO
    assert 'report' in capfd.readouterr().out and (out/'report.md').read_text() == text


WRONG = {
    ('reproduce', 'boats'): 'boats: choose of chairs, weizmann, golf, all',
    ('reproduce', '--only', 'rivals'): '--only rivals: choose of results, baselines',
    ('reproduce', '--scale', 'huge'): '--scale huge: choose demo, short, paper',
    ('reproduce', '--scale', 'paper'): 'nvs data get chairs',
    ('reproduce', '--root', 'no/such/place'): '--root no/such/place: has no folder called chairs, weizmann, golf',
    ('reproduce', 'golf', '--vgg16', 'gone.npz'): 'gone.npz: VGG16 weights cannot be read',
    ('reproduce', 'golf', '--set', 'wdith=3'): "did you mean 'width'",
    ('reproduce', 'golf', '--set', 'd_width=8'): '--set d_width: not a setting of nvs',
    ('reproduce', 'golf', '--set', 'model=vgan'): '--set model=vgan: this is said by --only baselines',
}


@pytest.mark.parametrize('args', WRONG, ids=' '.join)
def test_reproduce_complains(args, capfd):
    "One line, exit code 2, nothing written"
    assert nvs(*args) == 2
    err = capfd.readouterr().err
    assert err.startswith('nvs: ') and WRONG[args] in err and err.count('\n') == 1 and not [*Path().iterdir()]


def test_pictures_that_share_a_name():
    with pytest.raises(ValueError, match='share a name'):
        write_pages('out', 't', [], [Section('s', [Picture('x.png', None, ''), Picture('x.png', None, '')])])
    assert not Path('out').exists()
