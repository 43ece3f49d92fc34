"Trainings side by side: stopped, damaged, failed, asked for again; and the report that is made of them."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvs_nb.cli import main
from nvs_nb.config import make_config
from nvs_nb.core import NvsError, read_json
from nvs_nb.paper.plan import Job, Plan, finished, job_path, open_job, run_jobs
from nvs_nb.evaluation.tables import Picture, Section, Table, as_html, write_pages

TOY = dict(size=32, frames=4, levels=2, width=16, hidden=8, d_s=8, d_t=4, precision='fp32', threads=1)
FLAGS = [x for k, v in TOY.items() for x in ('--set', f'{k}={v}')]


def toy(name, **changes): return Job(name, make_config('swings', **{**TOY, 'epochs': 4, **changes}))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    for name in ('NVS_DATA', 'NVS_VGG16', 'NVS_CACHE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def run(jobs, **kw): return run_jobs(jobs, 'runs', 'cpu', progress=False, **kw)


def test_done_once_and_mended():
    "What is finished is left alone; lost scores are computed again without training"
    job = toy('a')
    assert run([job, toy('b', epochs=4)]) == {'a': '', 'b': ''}
    path = job_path(job, 'runs')
    weights, scores = (path / 'checkpoint.pt').read_bytes(), read_json(path / 'scores.json')
    stamp = (path / 'scores.json').stat().st_mtime_ns
    assert run([job]) == {'a': ''} and (path / 'scores.json').stat().st_mtime_ns == stamp
    (path / 'scores.json').write_text('{"psnr')
    assert run([job]) == {'a': ''} and (path / 'checkpoint.pt').read_bytes() == weights
    again = read_json(path / 'scores.json')
    assert [again[k] for k in ('psnr_mean', 'mcs', 'fcs')] == [scores[k] for k in ('psnr_mean', 'mcs', 'fcs')]
    assert open_job(job, 'runs').scores['step'] == 4 and again['cards']['mcs']['weights_seed'] == 0


def test_other_settings_are_another_job():
    assert job_path(toy('a'), 'runs') != job_path(toy('a', lr_g=1e-4), 'runs')
    assert job_path(toy('a'), 'runs') == job_path(toy('a'), 'runs')


def test_failure_is_told_and_others_go_on():
    bad = toy('bad', loss='mse', output='linear', norm='none', g_init='fan', lr_z=1e4,
              latent_opt='sgd', code_norm='none', epochs=30)
    told = run([bad, toy('good')])
    assert told['good'] == '' and 'the loss is not finite' in told['bad']
    with pytest.raises(NvsError, match='not finished'): open_job(bad, 'runs')


def test_bad_feature_network_is_told_at_once():
    Path('vgg.npz').write_text('no weights')
    with pytest.raises(NvsError, match='vgg.npz: not an .npz'): run([toy('a')], vgg='vgg.npz')
    assert not Path('runs').exists()


SCRIPT = f'''
import sys
from nvs_nb.config import make_config
from nvs_nb.paper.plan import Job, run_jobs
jobs = [Job(n, make_config('swings', **{TOY}, seconds=6.)) for n in 'ab']
try: run_jobs(jobs, 'runs', 'cpu', side_by_side=2, progress=False)
except KeyboardInterrupt as e: sys.exit(f'stopped: {{e}}')
'''


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_continued(signum):
    "One signal saves every training; the same call goes on with them"
    process = subprocess.Popen([sys.executable, '-c', SCRIPT], stderr=subprocess.PIPE, text=True, start_new_session=True)
    logs, until = lambda: [*Path('runs').glob('*/config.json')], time.monotonic() + 60
    while len(logs()) < 2 and time.monotonic() < until: time.sleep(.1)
    time.sleep(1.5)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and 'stopped: the trainings in' in err
    assert len([*Path('runs').glob('*/checkpoint.pt')]) == 2 and not [*Path('runs').glob('*/scores.json')]
    assert subprocess.run([sys.executable, '-c', SCRIPT], timeout=120).returncode == 0
    for path in Path('runs').glob('*/metrics.jsonl'):
        last = json.loads(path.read_text().splitlines()[-1])
        assert 6 <= last['seconds'] < 9 and finished(path.parent, '')


def test_plan():
    with pytest.raises(NvsError, match='--scale huge: choose demo, short, paper'): Plan('huge')
    plan = Plan('paper', roots=dict(weizmann='w', golf='g'))
    assert [plan.set_of(b) for b in plan.sets] == ['chairs', 'weizmann', 'golf'] and plan.embedded('chairs')
    c = plan.job('weizmann', 'full').config
    assert (c.recipe, c.seconds, c.epochs, c.label, c.static_ids, c.window) == ('paper', 0., 700, 'transient', 'set', 'visit')
    assert plan.job('golf', 'x').root == 'g' and plan.job('golf', 'x').config.data.draw == 500
    assert Plan('short', seconds=80.).job('golf', 'x', share=.5).config.budget.seconds == 40


def nvs(*args): return main([str(a) for a in args])


def test_reproduce(capfd):
    "A page for one set, with tables, pictures and numbers; made again at once; nothing of it outside its folders"
    args = ['reproduce', 'golf', '--seconds', 1, '--device', 'cpu', *FLAGS]
    assert nvs(*args) == 0
    out = Path('runs/reproduce-demo/report-golf')
    text, page, book = (out / 'report.md').read_text(), (out / 'report.html').read_text(), read_json(out / 'results.json')
    for title in ('Table 1: kinds of methods', 'Table 2: Golf', 'Figure 5: Golf', 'Supplement, Table 2: settings', 'All trainings'):
        assert f'## {title}' in text and f'<h2>{title}</h2>' in page and title in book['sections']
    here = book['sections']['Table 2: Golf']['here']
    assert set(here) == {'without', 'full'} and f'{here["full"]["psnr_mean"]:.2f}' in text
    for name in re.findall(r'!\[[^]]*\]\(([^)]*)\)', text): assert (out / name).stat().st_size > 500 and f'src="{name}"' in page
    assert {p.name for p in Path().iterdir()} == {'runs'}
    before = {p: p.stat().st_mtime_ns for p in Path('runs').rglob('checkpoint.pt')}
    capfd.readouterr()
    assert nvs(*args) == 0
    assert {p: p.stat().st_mtime_ns for p in Path('runs').rglob('checkpoint.pt')} == before and len(before) == 2
    assert 'report' in capfd.readouterr().out and (out / 'report.md').read_text() == text


WRONG = {
    ('reproduce', 'boats'): 'boats: choose of chairs, weizmann, golf, or all',
    ('reproduce', '--only', 'rivals'): '--only rivals: choose of experiments, compare',
    ('reproduce', '--scale', 'huge'): '--scale huge: choose demo, short, paper',
    ('reproduce', '--scale', 'paper'): 'nvs data get chairs',
    ('reproduce', '--root', 'no/such/place'): '--root no/such/place: has no folder called chairs, weizmann, golf',
    ('reproduce', 'golf', '--vgg16', 'gone.npz'): 'gone.npz: VGG16 weights cannot be read',
    ('reproduce', 'golf', '--set', 'wdith=3'): "did you mean 'width'",
}


@pytest.mark.parametrize('args', WRONG, ids=' '.join)
def test_reproduce_complains(args, capfd):
    "One line, exit code 2, nothing written"
    assert nvs(*args) == 2
    err = capfd.readouterr().err
    assert err.startswith('nvs: ') and WRONG[args] in err and err.count('\n') == 1 and not [*Path().iterdir()]


def test_pages_escape_names():
    row = Table(['a|b'], [['<script>alert(1)</script>']], '<i>')
    assert '<script>' not in as_html(row) and '&lt;script&gt;' in as_html(row)
    with pytest.raises(ValueError, match='share a name'):
        write_pages('out', 't', [], [Section('s', [Picture('x.png', None, ''), Picture('x.png', None, '')])])
    assert not Path('out').exists()
