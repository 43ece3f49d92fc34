"One's own clips, and runs that go on: what is said before and after a training, `nvs resume` after the end, `nvs runs`."
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from test_cli import nvs, place  # noqa: F401, a fixture

from nvs_nb import cli, core
from nvs_nb.config import differences, make_config
from nvs_nb.core import NvsError, note_made, wrapped
from nvs_nb.evaluation import report
from nvs_nb.training.checkpoint import left_out, load_run
from nvs_nb.training.trainer import Trainer

SHORT = ['--device', 'cpu', *'--size 32 --frames 4 --set width=16 --set hidden=8 --set batch=6'.split(),
         *'--set precision=fp32 --set threads=1'.split()]


def done(*args):
    r = nvs(*args)
    assert r.code == 0, r.err[-3000:]
    return r.out


def refused(*args, names):
    r = nvs(*args)
    line = [x for x in r.err.split('\n') if x.startswith('nvs: ') and not x.startswith('nvs: note')]
    assert r.code == 2 and len(line) == 1 and all(n in line[0] for n in names), (r.code, r.err)


def film(path, n, size=(40, 60)):
    "An animation of `n` frames, each with a brightness of its own"
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.new('L', size, 250*i//n) for i in range(n))
    first.save(path, save_all=True, append_images=others, duration=80)


@pytest.fixture(scope='module')
def own(tmp_path_factory):
    "A run on a folder with a space in its name: two films, one long; two that are too short and three that are none"
    top = tmp_path_factory.mktemp('own')
    for name, n in (('a', 9), ('long one', 31), ('s1', 3), ('s2', 1)): film(top / f'My Clips/{name}.gif', n)
    for i in range(3): (top / f'My Clips/bad{i}.mp4').write_text('no film')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NVS_CACHE', str(top / '.cache'))
        out = done('train', top / 'My Clips', '--runs', top / 'runs', *SHORT, '--epochs', 2)
        yield SimpleNamespace(top=top, path=top / 'runs/My_Clips-fast', out=out)


@pytest.fixture
def run(own):
    shutil.copytree(own.path, 'runs/mine')
    return Path('runs/mine')


# ---- a folder

def test_what_is_said_before_a_training(own):
    out = own.out
    assert out.split('\n')[0] == f'reading clips in {own.top}/My Clips ...'
    said = '2 clips, 4 frames each, 32x32 px (folder); the longest has 31 frames: spread over all of it (every 10th)'
    assert said in out and 'one clip' not in out
    assert re.search(r'left out +5: .*\.\.\.: all of them are listed in .*My_Clips-fast/clips.json', out)


def test_clips_left_out_are_kept_with_the_run(own):
    told = json.loads((own.path / 'clips.json').read_text())
    assert told['names'] == ['a', 'long one'] and told['lengths'] == [9, 31]
    assert [x.split(':')[0] for x in left_out(own.path)] == ['bad0.mp4', 'bad1.mp4', 'bad2.mp4', 's1', 's2']
    assert 's2: 1 frame, 4 needed' in left_out(own.path) and left_out(own.top) == []


@pytest.mark.parametrize('text', ['[]', '{"left_out": "x"}', '{"left_out": [3]}', '{'])
def test_a_damaged_list_of_clips(text, run):
    (run / 'clips.json').write_text(text)
    with pytest.raises(NvsError, match='clips.json'): left_out(run)


@pytest.mark.parametrize('options, told, window, frames', [
    (['--window', 'first'], 'only the first 4 of it, every frame; --window even', 'first', [0, 1, 2, 3]),
    (['--stride', '3'], 'only the first 4 of it, every 3rd', 'first', [0, 3, 6, 9]),
    (['--set', 'stride=2'], 'every 2nd', 'first', [0, 2, 4, 6]),
    ([], 'spread over all of it (every 10th)', 'even', [0, 10, 20, 30])])
def test_which_frames(options, told, window, frames, place, monkeypatch):
    film(place / 'x/a.gif', 31)
    clips = []
    monkeypatch.setattr(Trainer, 'fit', lambda t: clips.append(t.clips.frames) or (_ for _ in ()).throw(NvsError('enough')))
    r = nvs('train', 'x', *SHORT, *options)
    assert told in r.out and r.code == 2 and not Path('runs').exists()
    assert 'one clip    it is learnt alone' in r.out
    assert np.abs(clips[0][0, :, 16, 16, 0] - np.array([250*i//31 for i in frames])).max() <= 2
    assert cli.settings('folder', 'x', 'fast', 'nvs', [], stride=3).data.window == 'first'


def test_fit_is_an_option():
    assert [cli.settings('folder', 'x', 'fast', 'nvs', [], fit=cli.Fit(f)).data.fit for f in ('pad', 'person')] == [
        'pad', 'person']
    refused('train', 'chairs', '--fit', 'stretch', names=['--fit', 'squeeze'])
    refused('train', 'chairs', '--fit', 'pad', '--set', 'fit=crop', names=['--fit', '--set'])
    refused('train', 'chairs', '--window', 'last', names=["'--window': 'last' is not", 'even'])
    refused('train', 'folder', '--root', '.', '--window', 'even', '--stride', '2', names=['even', 'stride'])


def test_a_folder_or_a_dataset(place):
    Path('chairs').mkdir(), Path('x').mkdir(), Path('f.mp4').touch()
    assert cli.own_folder('chairs', None) == ('chairs', None, 'chairs')  # the embedded ones, as ever
    assert cli.own_folder('./chairs', None) == ('folder', './chairs', 'chairs')
    assert cli.own_folder('.', None)[2] == cli.safe_names([place.name])[0]
    refused('train', 'x', '--root', 'chairs', names=['x', '--root', 'give one'])
    refused('train', 'f.mp4', names=['f.mp4', 'the folder that it is in'])
    refused('train', 'nowhere', names=['nowhere', 'neither a folder', 'weizmann'])
    refused('train', 'chars', names=['chars', 'did you mean chairs?'])
    Path('My Clips').mkdir()
    refused('train', 'My Clps', names=["did you mean 'My Clips'?"])
    refused('train', f'{place}/My_Clips', names=[f"did you mean '{place}/My Clips'?"])
    refused('train', '', names=['neither a folder'])
    refused('train', 'x', names=['x', 'no clips in it'])
    film(Path('x/a.gif'), 9), note_made('x', ['a.gif'])
    refused('train', 'x', names=['x', 'no clips in it', '1 that nvs wrote'])


def test_limits_of_a_folder():
    "One's own clips are trained for minutes at most, unless it is said how long"
    b = make_config('folder').budget
    assert (b.epochs, b.limit) == (1000, 600.) and make_config('folder', epochs=3).budget.limit == 0
    assert cli.settings('folder', 'x', 'fast', 'nvs', [], seconds=5.).budget.limit == 0


def test_info_about_a_folder(place):
    film(place / 'My Clips/a.gif', 5)
    assert '1 clip' in done('data', 'info', 'My Clips')


# ---- a run that goes on

def test_resume_after_the_end(run):
    "As many more steps, with learning rates that start anew; what is scored and kept belongs to the new end"
    was = json.loads((run / 'scores.json').read_text())
    out = done('resume', 'mine', '--epochs', 6, '--device', 'cpu')
    lines = [json.loads(x) for x in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [x['step'] for x in lines] == [2, 8] and '8 epochs, 8 steps in all, after 2 steps' in out
    now = json.loads((run / 'scores.json').read_text())
    assert now['step'] == 8 and now['psnr_mean'] != was['psnr_mean']
    c = json.loads((run / 'config.json').read_text())['budget']
    assert (c['epochs'], c['start'], c['earlier'], c['limit']) == (8, 2., 'epochs=2', 0.)
    assert load_run(run)[1].budget.stretches() == [('epochs', 2.), ('epochs', 6.)]
    page = html.unescape((run / 'report.html').read_text())
    assert 'mine: 2 clips of My Clips' in page and '--epochs 2' in page and 'nvs resume mine --epochs 6' in page
    assert f'finished, 8 steps; to train it longer:\n    nvs resume runs/mine --epochs 6' in done('resume', 'mine')


def test_rates_start_anew_and_fall_again(run):
    from nvs_nb.training.checkpoint import open_run, run_clips
    r = open_run('mine')
    t = Trainer.resume(run, run_clips(r), epochs=9, device='cpu', progress=False)
    rates = []
    while t.done() < 1: rates.append(t.lr_factor()), t.advance()
    assert len(rates) == 9 and rates[0] == 1 and sorted(rates)[::-1] == rates and rates[-1] == pytest.approx(.25)
    same = Trainer.resume(run, run_clips(r), device='cpu', progress=False)
    assert same.done() == 1  # what was planned is over


def test_resume_for_seconds(run):
    out = done('resume', 'mine', '--seconds', .3, '--device', 'cpu')
    m = json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])
    b = load_run(run)[1].budget
    assert b.seconds == pytest.approx(b.start + .3) and m['seconds'] >= b.seconds and m['step'] > 2
    assert re.search(r'longer +nvs resume runs/mine --seconds 1', out)


def test_a_stretch_that_is_interrupted_goes_on(run):
    "The new plan is saved before its first step, and a plain resume follows it"
    from nvs_nb.training.checkpoint import open_run, run_clips
    Trainer.resume(run, run_clips(open_run('mine')), epochs=5, device='cpu', progress=False).fit(until=4)
    assert '40% done' in done('info', 'mine')
    done('resume', 'mine', '--device', 'cpu')
    assert json.loads((run / 'scores.json').read_text())['step'] == 7


@pytest.mark.parametrize('args, names', [
    (['--epochs', '1', '--seconds', '1'], ['--epochs and --seconds']), (['--epochs', '0'], ['--epochs']),
    (['--seconds', 'nan'], ['seconds'])])
def test_resume_that_cannot_be(args, names, run):
    before = (run / 'checkpoint.pt').read_bytes()
    refused('resume', 'mine', *args, names=names)
    assert (run / 'checkpoint.pt').read_bytes() == before


@pytest.mark.parametrize('budget', [dict(start=9.), dict(earlier='epochs=x'), dict(earlier='a' * 99), dict(start=-1.)])
def test_a_budget_that_cannot_be(budget, run):
    path = run / 'checkpoint.pt'
    state = torch.load(path, weights_only=True)
    state['config']['budget'] |= budget
    torch.save(state, path)
    refused('resume', 'mine', names=['checkpoint.pt', 'budget'])


def test_a_clock_in_a_command():
    "What a stretch of seconds leaves unused is not said, and its tenths are enough"
    c = make_config('folder', seconds=25.).longer((9., 25.129359068), seconds=10)
    assert report.command(c, 'my clips') == "nvs train folder --root 'my clips' --seconds 25.1\nnvs resume RUN --seconds 10"
    assert differences(c) == {'budget.seconds': (0., 25.1)}


def test_a_packed_run_names_no_folder(run):
    done('pack', 'mine'), done('unpack', 'mine.nvs', '--name', 'again')
    assert f'from {run.resolve().parent}' not in done('info', 'again') and 'px: a, long one' in done('info', 'again')
    assert 'My Clips: a, long one' in done('info', 'mine')


# ---- what there is, and how good it is

def test_runs_are_listed(run):
    Path('runs/none').mkdir(), Path('runs/odd').mkdir(), Path('runs/odd/checkpoint.pt').touch()
    out = done('runs')
    assert re.search(r'(?m)^mine\n    folder, model nvs, preset fast, 4 frames of 32 px; finished, 2 steps, .*; '
                     r'PSNR .* dB \(mean frame .* dB\); 20', out), out
    assert 'odd\n    no configuration' in out and 'none' not in out
    assert 'no runs in empty yet' in done('runs', '--runs', 'empty')
    refused('info', 'mien', names=['no such run', 'mine'])


def test_a_name_that_no_run_has():
    refused('info', 'x', names=['no such run; there is none in runs yet'])
    for i in range(12): Path(f'runs/r{i:02d}').mkdir(parents=True), Path(f'runs/r{i:02d}/checkpoint.pt').touch()
    refused('info', 'r11x', names=['in runs: r11', '(nvs runs'])


@pytest.mark.parametrize('ours, pca, moving, words', [
    (20., 26., 10., 'Nothing learnt yet: the clips are 4.0 dB less near'), (25., 26., 10., 'No motion learnt yet'),
    (24.5, 26., 19., 'Little learnt: the clips are only 0.5 dB nearer'), (25., 26., 19., 'PCA, without any training'),
    (30., 26., 19., 'also 4.0 dB nearer than PCA'), (30., None, 19., 'Learnt: the clips are 6.0 dB nearer')])
def test_verdict(ours, pca, moving, words):
    scores = dict(psnr_mean=ours, baseline_psnr_mean=24., pca_psnr_mean=pca, psnr_moving=moving,
                  baseline_psnr_moving=15., psnr_clips=[ours])
    assert words in report.verdict(scores)


def test_the_end_of_a_training(own):
    scores = json.loads((own.path / 'scores.json').read_text())
    lines = dict(re.findall(r'(?m)^(\w+) +(.*)$', own.out.split('\n\n')[-1]))
    assert lines['verdict'] == report.verdict(scores) and lines['report'] == f'{own.path}/report.html'
    assert lines['next'] == f'nvs generate {own.path}' and lines['longer'] == f'nvs resume {own.path} --epochs 2'


# ---- lines, bars, the Tab key

class Terminal(io.StringIO):
    def isatty(self): return True


TEXT = 'verdict     Learnt: the clips are 7.0 dB nearer to the originals than their mean frame, which does not move.'


@pytest.mark.parametrize('columns, most', [(20, 44), (44, 44), (60, 60), (200, 200)])
def test_lines_break_at_word_ends(columns, most, monkeypatch):
    monkeypatch.setenv('COLUMNS', str(columns))
    lines = wrapped(TEXT, Terminal()).split('\n')
    assert max(map(len, lines)) <= most and ' '.join(x.strip() for x in lines) == TEXT
    assert all(x.startswith(' '*12) for x in lines[1:]) and (len(lines) == 1) == (most == 200)
    assert wrapped(TEXT, io.StringIO()) == TEXT  # a file keeps its lines
    long = 'a' * 99
    assert wrapped(f'x  {long}', Terminal()).split('\n')[-1].strip()[-9:] == long[-9:]


def test_commands_can_be_copied(monkeypatch):
    "Pasted into a shell, the lines are the command"
    monkeypatch.setenv('COLUMNS', '44')
    words = ['nvs', 'resume', 'runs/My Clips and their long names', '--seconds', '300', '--root', "it's"]
    text = wrapped(core.shell_line(*words), Terminal(), command=True)
    said = subprocess.run(['sh', '-c', text.replace('nvs', "printf '%s|' nvs", 1)], capture_output=True, text=True)
    assert len(text.split('\n')) > 1 and said.stdout == '|'.join(words) + '|'


@pytest.mark.parametrize('command', ['train', 'resume', 'runs'])
def test_help_in_a_narrow_terminal(command, monkeypatch):
    monkeypatch.setenv('COLUMNS', '44')
    assert max(map(len, done(command, '--help').split('\n'))) <= 44


def test_scores_in_a_narrow_terminal(monkeypatch):
    rows = [('PSNR, mean (dB)', '30.00', '18.11 (mean frame), 23.30 (PCA)'), ('FCS', '0.9', '0.4 (real clips)')]
    for columns, n in ((44, 4), (100, 2)):
        monkeypatch.setenv('COLUMNS', str(columns)), monkeypatch.setattr('sys.stdout', Terminal())
        cli.say_rows(rows)
        lines = cli.sys.stdout.getvalue().rstrip('\n').split('\n')
        assert len(lines) == n and max(map(len, lines)) <= columns, lines


def test_a_bar_in_a_file_is_a_line_for_each_tenth(monkeypatch):
    monkeypatch.setattr('sys.stderr', io.StringIO())
    for _ in core.bar(range(1000), 'reading files', delay=0, mininterval=0, miniters=1, disable=False): pass
    lines = core.sys.stderr.getvalue().rstrip('\n').split('\n')
    assert [re.match(r'reading files +(\d+)%, \d', x)[1] for x in lines] == [str(10*i) for i in range(1, 11)]
    monkeypatch.setattr('sys.stderr', io.StringIO())
    for _ in core.bar(range(1000), 'reading files', disable=False): pass  # less than a second
    for _ in core.bar(range(10), 'x', show=False, delay=0): pass
    assert core.sys.stderr.getvalue() == ''


def test_a_bar_in_a_terminal_says_what_it_does(monkeypatch):
    monkeypatch.setattr('sys.stderr', Terminal()), monkeypatch.setenv('COLUMNS', '60')
    for _ in core.bar(range(9), 'scoring SSIM', delay=0, disable=False): pass
    assert '\rscoring SSIM' in core.sys.stderr.getvalue() and '|' in core.sys.stderr.getvalue()


def completed(words, monkeypatch, capsys):
    for key, value in dict(_NVS_COMPLETE='complete_bash', COMP_WORDS=words, COMP_CWORD=words.count(' ')).items():
        monkeypatch.setenv(key, str(value))
    with pytest.raises(SystemExit) as end: raise SystemExit(cli.main([]))
    assert end.value.code == 0
    return capsys.readouterr().out.split()


def test_the_tab_key(monkeypatch, capsys):
    for name in ('mine', 'mint', 'other'): Path('runs', name).mkdir(parents=True), Path('runs', name, 'checkpoint.pt').touch()
    assert completed('nvs res', monkeypatch, capsys) == ['resume']
    assert completed('nvs resume mi', monkeypatch, capsys) == ['mine', 'mint']
    assert completed('nvs train ch', monkeypatch, capsys) == ['chairs', 'chair-cad']
    assert completed('nvs train chairs --fit s', monkeypatch, capsys) == ['squeeze']
    monkeypatch.delenv('_NVS_COMPLETE')
    assert '--install-completion' in done('--help')
