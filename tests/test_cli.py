"""The `nvs` command: what it does, and what bad input gets.

A mistake gets exit code 2, one line on standard error that begins with `nvs: ` and names the file or the option, no
traceback, and leaves every file as it was. All commands run in this process, except where a signal, a limit of the
system or the start of the interpreter is what is tested.
"""
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from nvs_nb import cli
from nvs_nb.training import checkpoint as runs
from nvs_nb.data.clips import SETS
from nvs_nb.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
TINY = ['--device', 'cpu', *'--set size=32 --set width=16 --set hidden=8 --set batch=6'.split(),
        *'--set precision=fp32 --set threads=1'.split()]
SHORT = [*TINY, '--set', 'frames=4', '--epochs', '1']
IMAGES = '.gif .png .mp4'.split()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, small_vgg):
    "An empty folder to work in, and no data, cache or weights of this machine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / '.cache'))
    return tmp_path


def nvs(*args):
    "Run a command line in this process"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(a) for a in args])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def done(*args):
    r = nvs(*args)
    assert r.code == 0, r.err[-3000:]
    return r


def tree(top='.'):
    "Every file with its content and time, every folder; the cache, locks and what coverage keeps do not count"
    paths = [p for p in sorted(Path(top).rglob('*'))
             if '.cache' not in p.parts and p.name != '.lock' and not p.name.startswith('.coverage')]
    return {p.as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) if p.is_file() else None for p in paths}


def complaint(r, *words, code=2):
    "The one line on standard error; progress bars may stand before it"
    lines = [x for x in re.split('[\r\n]', r.err) if x.startswith('nvs: ') and not x.startswith('nvs: note:')]
    assert (r.code, len(lines)) == (code, 1), (r.code, r.out, r.err)
    assert 'Traceback' not in r.err + r.out
    assert not [w for w in words if str(w) not in lines[0]], lines[0]
    return lines[0]


def refused(*args, names=()):
    "A command that must change nothing and answer with one line, which holds all of `names`"
    before = tree()
    r = nvs(*args)
    line = complaint(r, *names)
    after = tree()
    assert after.keys() == before.keys(), sorted(after.keys() ^ before.keys())
    assert after == before
    assert r.err.rstrip('\n').split('\n')[-1] == line
    return line


def golf(root, clips=3, frames=4, seed=0):
    "A folder like VGAN's: square frames below each other"
    root, rng = Path(root), np.random.default_rng(seed)
    root.mkdir(parents=True)
    for i in range(clips): Image.fromarray(rng.integers(0, 255, (frames*40, 40, 3), np.uint8)).save(root / f'{i}.jpg')
    return root


def own(root, clips, frames=4, size=(40, 40)):
    "A folder of one's own: frames in sub-folders"
    for name in clips:
        folder = Path(root, name)
        folder.mkdir(parents=True)
        for i in range(frames): Image.new('RGB', size, (40*i, 9, 9)).save(folder / f'{i}.png')
    return Path(root)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run over a golf folder, trained once for all tests of this file; each test works on a copy"
    top = tmp_path_factory.mktemp('trained')
    root = golf(top / 'golf')
    r = done('train', 'golf', '--root', root, '--runs', top, '--name', 'run', *SHORT)
    return SimpleNamespace(root=root, path=top / 'run', out=r.out)


@pytest.fixture
def run(trained, place):
    shutil.copytree(trained.path, 'run')
    return Path('run')


def edit(run, **changes):
    "Write other things into the checkpoint of a run"
    path = Path(run, 'checkpoint.pt')
    state = torch.load(path, weights_only=True)
    for key, value in changes.items(): state[key] = value(state[key]) if callable(value) else value
    torch.save(state, path)


# ---- what the commands do

def test_train_tells_what_it_does(trained):
    words = ['3 clips, 4 frames each, 32x32 px', 'parameters', 'z_t (3, 4, ', 'on cpu, fp32', ' thread', '1 epochs',
             'PSNR, mean', 'mean frame', 'report.html']
    assert not [w for w in words if w not in trained.out], trained.out


def test_train_leaves_a_whole_run(trained):
    have = {p.relative_to(trained.path).as_posix() for p in trained.path.rglob('*.*')}
    assert {'config.json', 'metrics.jsonl', 'checkpoint.pt', 'scores.json', 'report.html', 'samples/mosaic.gif',
            'samples/mosaic.mp4', 'samples/ranks.png', 'samples/paths.png', 'samples/curves.png'} <= have
    s = json.loads((trained.path / 'scores.json').read_text())
    assert s['names'] == ['0', '1', '2'] and len(s['psnr_clips']) == 3 and s['step'] == 1
    assert abs(s['psnr_mean'] - np.mean(s['psnr_clips'])) < 1e-9 and s['psnr_worst'] == min(s['psnr_clips'])
    assert s['baseline_psnr_mean'] > 5 and 'mcs' not in s and '--vgg16' in s['cards']['mcs']['left_out']


def test_report_is_one_file(trained):
    text = (trained.path / 'report.html').read_text()
    sources = re.findall(r'<(?:img|video)[^>]*src="([^"]{20})', text)
    assert len(sources) >= 6 and all(s.startswith(('data:image/png;base6', 'data:video/mp4;base6')) for s in sources)
    assert f'--root {trained.root}' in text and 'data.frames' in text and 'device: ' in text
    assert 'one processor core' not in text


def test_default_name_is_numbered():
    for name in ('chairs-fast', 'chairs-fast-2'):
        done('train', 'chairs', *SHORT)
        assert Path('runs', name, 'report.html').exists()


def test_preset_and_seed_reach_the_run():
    done('train', 'chairs', '--preset', 'released', '--set', 'seed=5', '--set', 'repeats=1', '--name', 'r', *SHORT)
    c = json.loads(Path('runs/r/config.json').read_text())
    assert (c['preset'], c['seed'], c['model']['name'], c['model']['width']) == ('released', 5, 'released', 16)


def test_crops_drawn_in_each_step(trained):
    more = ['--set', 'window=crop', '--set', 'read_frames=4', '--set', 'frames=3', '--epochs', 1]
    r = done('train', 'golf', '--root', trained.root, *TINY, *more)
    assert '3 clips, 4 frames each' in r.out and 'z_t (3, 3, ' in r.out


def test_evaluate_gives_the_same_scores(run):
    old = json.loads((run / 'scores.json').read_text())
    (run / 'scores.json').unlink(), (run / 'report.html').unlink()
    assert 'PSNR, worst' in done('evaluate', run, '--device', 'cpu').out
    new = json.loads((run / 'scores.json').read_text())
    assert new['psnr_clips'] == pytest.approx(old['psnr_clips'], abs=1e-3) and (run / 'report.html').exists()


def test_scores_with_vgg(run):
    from nvs_nb.evaluation.metrics import VGGFeatures
    np.savez('vgg.npz', **{k: v.numpy() for k, v in VGGFeatures().state_dict().items()})
    assert 'MCS, absolute' in done('evaluate', run, '--vgg16', 'vgg.npz').out
    s = json.loads((run / 'scores.json').read_text())
    assert s['mcs'] is not None and s['mcs_frozen'] is not None and s['cards']['mcs']['file'] == 'vgg.npz'


def test_info(run):
    out = done('info', run).out
    words = ['golf', '3 of 4 frames', 'frames=4', 'size=32', 'finished', 'PSNR, mean']
    assert not [w for w in words if w not in out], out


def test_resume_of_a_finished_run(run):
    before = tree('run')
    assert 'finished' in done('resume', run).out and tree('run') == before
    (run / 'scores.json').unlink()
    assert 'PSNR, mean' in done('resume', run).out and (run / 'scores.json').exists()


def test_resume_scores_anew_what_was_scored_before_the_end(run):
    scores = json.loads((run / 'scores.json').read_text())
    (run / 'scores.json').write_text(json.dumps({**scores, 'step': 0, 'psnr_mean': 99}))
    done('resume', run)
    assert json.loads((run / 'scores.json').read_text())['psnr_mean'] < 99


def test_resume_where_the_clips_have_moved(run, trained):
    shutil.copytree(trained.root, 'moved')
    edit(run, clips=lambda c: {**c, 'root': 'gone'}), (run / 'scores.json').unlink()
    refused('resume', run, names=['gone', '--root'])
    done('resume', run, '--root', 'moved')
    assert '--root moved' in (run / 'report.html').read_text()


def test_generate_everything(run):
    done('generate', run)
    names = sorted(p.name for p in (run / 'generated').glob('[!.]*'))
    assert names == sorted([f'{n}{s}' for n in '012' for s in IMAGES] + ['all.gif', 'all.mp4'])
    assert iio.imread(run / 'generated/1.mp4', plugin='pyav').shape == (4, 32, 32, 3)
    with Image.open(run / 'generated/1.gif') as im: assert im.size == (32, 32)
    with Image.open(run / 'generated/1.png') as im: assert im.height == 32 and im.width >= 4*32
    done('generate', run)  # again, over the same files


def test_generate_some(run):
    done('generate', run, *'--clip 2 --clip 0 --format gif --format strip --out x/y --scale 3 --fps 5'.split())
    assert sorted(p.name for p in Path('x/y').glob('[!.]*')) == ['0.gif', '0.png', '2.gif', '2.png', 'all.gif']
    with Image.open('x/y/2.gif') as im:  # frames that are equal are stored once, and shown for longer
        assert im.size == (96, 96) and sum(f.info['duration'] for f in ImageSequence.Iterator(im)) == 4*200


def test_generate_makes_names_safe(run):
    names = ['../../up', 'all', 'Über Weg/1']
    edit(run, clips=lambda c: {**c, 'names': names})
    before = tree()
    done('generate', run, '--format', 'strip', '--out', 'run/out')
    assert sorted(tree().keys() - before.keys()) == [
        'run/out', 'run/out/.nvs-made', 'run/out/all-2.png', 'run/out/up.png', 'run/out/Über_Weg_1.png']
    done('generate', run, '--clip', '../../up', '--format', 'gif', '--out', 'one')
    assert sorted(os.listdir('one')) == ['.nvs-made', 'up.gif']


def test_pretrained(run, place, monkeypatch):
    "The run that ships is looked at, and never written to"
    shutil.move('run', 'ships'), (place / 'ships/metrics.jsonl').unlink()
    edit('ships', trainer=None)
    monkeypatch.setattr(runs, 'PRETRAINED', place / 'ships')
    before = tree('ships')
    done('generate', 'pretrained', '--format', 'gif')
    assert Path('generated/all.gif').exists()
    assert 'weights only' in done('info', 'pretrained').out
    assert re.search(r'(?s)PSNR, mean.*\nverdict +Nothing learnt yet: ', done('evaluate', 'pretrained').out)
    refused('resume', 'pretrained', names=['nvs generate'])
    assert tree('ships') == before


@pytest.mark.skipif(not (runs.PRETRAINED / 'checkpoint.pt').exists(), reason='this copy has no pretrained run')
def test_pretrained_that_ships():
    done('generate', 'pretrained', '--clip', 'chair_031', '--format', 'strip')
    assert Path('generated/chair_031.png').exists()
    assert sum(p.stat().st_size for p in runs.PRETRAINED.rglob('*')) < 3e6


def test_a_run_is_found_below_runs(run):
    Path('runs').mkdir(), shutil.move('run', 'runs/mine')
    assert 'runs/mine' in done('info', 'mine').out


def test_help_names_all_sets_and_commands():
    text = re.sub(r'\s', '', done('train', '--help').out)  # a name may be cut at its hyphen
    assert not [s for s in SETS if s not in text]
    commands = ['demo', 'train', 'resume', 'generate', 'evaluate', 'info']
    assert not [c for c in commands if f'  {c} ' not in done().out]
    assert re.fullmatch(r'nvs_nb \d+\.\d+\.\d+\n', done('--version').out)


def test_every_command_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    told = done('--help').out.partition('Commands:')[2]
    assert 'demo' in told and '...' not in told


def test_help_is_quick():
    "It must not import torch"
    command = [sys.executable, '-X', 'importtime', '-m', 'nvs_nb.cli', '--help']
    p = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0 and 'demo' in p.stdout and ' torch' not in p.stderr and ' numpy' not in p.stderr


def press(monkeypatch, logs=2):
    "Do what Ctrl-C does, in the midst of training: when statistics are logged for the second time"
    log, left = Trainer.log, [logs]
    def log_and_press(t):
        log(t)
        left[0] -= 1
        if left[0] == 0: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(Trainer, 'log', log_and_press)


# ---- the demo

@pytest.fixture
def small_demo(monkeypatch):
    small = dict(size=32, width=16, hidden=8, batch=6, frames=4, epochs=2, precision='fp32', threads=1)
    monkeypatch.setattr(cli, 'DEMO', small)


def test_demo(small_demo):
    r = done('demo', '--device', 'cpu')
    s = json.loads(Path('runs/demo/scores.json').read_text())
    assert f'mean PSNR {s["psnr_mean"]:.2f} dB, worst clip {s["psnr_worst"]:.2f} dB' in r.out and len(s['names']) == 18
    named = re.findall(r'^(runs/demo/\S+): ', r.out, re.M)
    assert {'runs/demo/report.html', 'runs/demo/samples/mosaic.gif'} <= set(named)
    assert all(Path(f).is_file() for f in named)
    # a second one is made beside the first, which stays as it is
    before = tree('runs/demo')
    assert 'runs/demo-2' in done('demo', '--device', 'cpu').out
    assert tree('runs/demo') == before and Path('runs/demo-2/report.html').exists()


def test_a_demo_on_a_slow_machine_says_so(small_demo):
    cli.DEMO |= dict(epochs=100000, limit=.2)
    r = done('demo', '--device', 'cpu')
    assert 'at most 0.2 s' in r.out and 'stopped early' in r.out and Path('runs/demo/report.html').exists()


def test_demo_goes_on_where_it_was_stopped(small_demo, monkeypatch):
    cli.DEMO['epochs'] = 100000
    press(monkeypatch)
    complaint(nvs('demo', '--device', 'cpu'), 'runs/demo', 'resume', code=130)
    step = len(Path('runs/demo/metrics.jsonl').read_text().splitlines())
    press(monkeypatch)
    r = nvs('demo', '--device', 'cpu')
    assert 'going on' in r.out and r.code == 130 and os.listdir('runs') == ['demo']
    assert len(Path('runs/demo/metrics.jsonl').read_text().splitlines()) > step
    # other settings are another demo; and a demo that is whole but for its report gets it
    cli.DEMO['epochs'] = 1
    assert 'runs/demo-2' in done('demo', '--device', 'cpu').out
    Path('runs/demo-2/report.html').unlink()
    assert 'going on' in done('demo', '--device', 'cpu').out and Path('runs/demo-2/report.html').exists()


def test_demo_spares_what_it_does_not_know(small_demo):
    Path('mine').mkdir(), Path('mine/thesis.txt').write_text('all my work')
    Path('mine-2').mkdir(), Path('mine-2/checkpoint.pt').write_bytes(b'broken')
    before = tree()
    done('demo', '--out', 'mine', '--device', 'cpu')
    after = tree()
    assert all(after[k] == before[k] for k in before) and 'mine-3/report.html' in after
    refused('demo', '--out', 'mine/thesis.txt', names=['--out', 'thesis.txt'])


# ---- bad options

BAD = {  # what follows `nvs`: what the answer names
    'train': 'DATASET', 'train chars': 'chars', 'trian chairs': 'trian', 'train chairs --epoch 3': '--epoch',
    'train chairs --epochs ten': '--epochs', 'train chairs --epochs 0': '--epochs',
    'train chairs --seconds -1': '--seconds', 'train chairs --seconds nan': 'seconds',
    'train chairs --epochs 3 --seconds 5': '--epochs --seconds',
    'train chairs --epochs 3 --set epochs=4': '--epochs --set',
    'train chairs --epochs 3 --set seconds=4': '--epochs --seconds',
    'train chairs --preset slow': 'slow', 'train chairs --set preset=paper': '--preset',
    'train chairs --set dataset=golf': 'DATASET', 'train chairs --set model=vgan': '--model',
    'train chairs --set widht=64': 'widht width', 'train chairs --set width': 'width key=value',
    'train chairs --set width=wide': 'width wide', 'train chairs --set model.width=3.5': 'width 3.5',
    'train chairs --model vgan --set frames_per_clip=4': 'frames_per_clip vgan',
    'train chairs --model vgan --set norm=group': 'norm vgan',
    'train chairs --model gan': 'gan vgan videovae', 'train chairs --model vgan --preset released': 'vgan released',
    'train chairs --set sparsity=1': 'sparsity vgan', 'train chairs --set cuda_graph=yes': 'cuda_graph CUDA',
    'train chairs --set recurrent=maybe': 'recurrent maybe', 'train chairs --set norm=layer': 'norm layer',
    'train chairs --set lr_g=nan': 'lr_g nan', 'train chairs --set lr_z=inf': 'lr_z inf',
    'train chairs --set lr_r=-1': 'lr_r -1',
    'train chairs --set size=48': 'size 48', 'train chairs --set size=128': '128', 'train chairs --set frames=99': '99',
    'train chairs --name ../up': '--name ../up', 'train chairs --name=': '--name',
    'train chairs --device gpu': '--device gpu',
    'train chairs --vgg16 no.npz': 'no.npz', 'demo --seconds 0': '--seconds', 'demo --device tpu': '--device tpu',
    'resume': 'RUN', 'resume none': 'none', 'generate none': 'none', 'evaluate none': 'none', 'info none': 'none'}


@pytest.mark.parametrize('line', BAD)
def test_bad_option(line): refused(*line.split(), names=BAD[line].split())


BAD_FOR_A_RUN = {
    'generate run --clip 3': '--clip 0, 1, 2', 'generate run --format avi': '--format', 'generate run --fps 0': '--fps',
    'generate run --scale 0': '--scale', 'train chairs --runs . --name run': '--name run', 'info run run': 'run'}


@pytest.mark.parametrize('line', BAD_FOR_A_RUN)
def test_bad_option_for_a_run(run, line): refused(*line.split(), names=BAD_FOR_A_RUN[line].split())


@pytest.mark.parametrize('line', ['generate run --out thesis', 'reproduce chairs --out thesis',
                                  'reproduce chairs --runs thesis'])
def test_a_file_where_a_folder_goes(run, line):
    Path('thesis').write_text('all my work')
    refused(*line.split(), names=line.split()[-2:] + ['not a folder'])


def test_runs_that_are_there_are_named(run):
    shutil.copytree(run, 'runs/mine')
    refused('info', 'mien', names=['mien', 'no such run', 'mine'])


def test_info_tells_what_is_saved(run):
    "A training that was killed has logged more steps than its checkpoint holds"
    told = lambda: re.search('(?m)^trained .*', done('info', run).out)[0]
    before, log = told(), run / 'metrics.jsonl'
    last = json.loads(log.read_text().splitlines()[-1])
    with log.open('a') as f: f.write(json.dumps({**last, 'step': last['step'] + 40}) + '\n')
    assert told() == before


def test_near_names_are_offered(run):
    edit(run, clips=lambda c: {**c, 'names': ['ada_walk', 'ada_jump', 'bob_walk']})
    refused('generate', run, '--clip', 'ada_wlak', names=['ada_walk'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has CUDA')
@pytest.mark.parametrize('line', ['train chairs', 'demo', 'resume run', 'evaluate run', 'generate run'])
def test_cuda_where_there_is_none(run, line):
    refused(*line.split(), '--device', 'cuda', names=['--device cuda', 'no CUDA'])


# ---- bad clips

def train(name, root, *more): return ['train', name, '--root', root, *SHORT, *more]


def test_root_missing_or_empty():
    refused('train', 'golf', *SHORT, names=['golf', '--root'])
    refused(*train('golf', 'nowhere'), names=['nowhere'])
    Path('empty').mkdir(), Path('file').write_text('x')
    for name in ('golf', 'weizmann', 'chair-cad', 'folder'): refused(*train(name, 'empty'), names=['empty'])
    refused(*train('golf', 'file'), names=['file'])
    refused(*train('actors', 'empty'), names=['actors'])


def test_truncated_image():
    path = golf('g', clips=1) / '0.jpg'
    path.write_bytes(path.read_bytes()[:-800])
    refused(*train('golf', 'g'), names=['0.jpg'])


def test_file_that_is_no_image():
    (golf('g', clips=1) / '0.jpg').write_text('a text that was renamed')
    refused(*train('golf', 'g'), names=['0.jpg'])


def test_renamed_render():
    folder = Path('chairs/c1/renders')
    folder.mkdir(parents=True)
    im = Image.new('RGB', (600, 600), 'red')
    for i in range(6): im.save(folder / f'image_{i:03d}_p020_t{i:03d}_r096.png')
    (folder / 'image_002_p020_t002_r096.png').rename(folder / 'image_2.png')
    refused(*train('chairs', 'chairs'), names=['c1', '002'])


def test_width_that_does_not_divide():
    Path('w/walk').mkdir(parents=True)
    Image.new('RGB', (4*80 + 10, 64)).save('w/walk/eli_walk.png')
    refused(*train('weizmann', 'w'), names=['eli_walk.png'])
    golf('g', clips=0), Image.new('RGB', (40, 170)).save('g/odd.png')
    refused(*train('golf', 'g'), names=['odd.png'])


def test_clips_too_short():
    own('o', ['short1', 'short2'], frames=3)
    refused(*train('folder', 'o'), names=['4'])
    own('o', ['long1', 'long2'], frames=5)
    r = done(*train('folder', 'o'))
    assert '2 clips, 4 frames each' in r.out and re.search(r'left out +2: short1.*3 frames', r.out), r.out


def test_mixed_sizes():
    own('o', ['b']), Image.new('RGB', (60, 40)).save('o/b/3.png')
    refused(*train('folder', 'o'), names=['3.png'])


def test_video_without_frames():
    import av
    Path('o').mkdir(), Path('o/zero.mp4').touch()
    refused(*train('folder', 'o'), names=['zero.mp4'])
    Path('o/zero.mp4').unlink()
    with av.open('o/header.avi', 'w') as f:
        stream = f.add_stream('mpeg4', rate=5)
        stream.width = stream.height = 32
        f.start_encoding()
    refused(*train('folder', 'o'), names=['header.avi'])


# ---- settings that contradict each other

@pytest.mark.parametrize('args, told', [
    (['--seconds', '5', '--set', 'limit=9'], '--seconds and --set limit'),
    (['--set', 'seconds=5', '--set', 'limit=9'], '--seconds and --set limit'),
    (['--preset', 'glo', '--model', 'vgan'], 'the preset glo is for our model'),
    (['--preset', 'released', '--set', 'hidden=0'], 'hidden must be')])
def test_settings_that_contradict_each_other(args, told):
    complaint(nvs('train', 'chairs', *args), told)
    assert not Path('runs').exists()


# ---- non-finite values

def test_loss_that_is_not_finite():
    wild = 'lr_z=10000 latent_opt=sgd code_norm=none loss=mse norm=none g_init=fan output=linear g_opt=adam'.split()
    args = ['train', 'chairs', '--name', 'wild', *SHORT[:-1], '40', *(x for w in wild for x in ('--set', w))]
    complaint(nvs(*args), 'not finite', 'step')
    assert runs.load_checkpoint(Path('runs/wild/checkpoint.pt'))['trainer']['step'] == 0  # the last good one


def test_weights_that_are_not_finite(run):
    edit(run, model=lambda m: {k: v*float('nan') if v.is_floating_point() else v for k, v in m.items()})
    for command in ('info', 'generate', 'evaluate', 'resume'): refused(command, run, names=['checkpoint.pt', 'finite'])


# ---- bad runs

class Evil:
    def __reduce__(self): return os.mkdir, ('owned',)


def cut(path): path.write_bytes(path.read_bytes()[:path.stat().st_size//2])


SPOIL = {  # what is done to the checkpoint
    'cut in half': cut,
    'empty': lambda path: path.write_bytes(b''),
    'a text': lambda path: path.write_text('hello'),
    'missing': lambda path: path.unlink(),
    'tensors of others': lambda path: torch.save({'w': torch.zeros(3)}, path),
    'a pickle that runs code': lambda path: torch.save(Evil(), path),
    'another version': lambda path: edit(path.parent, version=runs.VERSION + 1),
    'nothing about clips': lambda path: edit(path.parent, clips=lambda c: {k: c[k] for k in c if k != 'fingerprint'}),
    'no progress': lambda path: edit(path.parent, trainer={'opt': {}}),
    'unknown key': lambda path: edit(path.parent, config=lambda c: {**c, 'wings': 2}),
    'another width': lambda path: edit(path.parent, config=lambda c: {**c, 'model': {**c['model'], 'width': 32}})}


@pytest.mark.parametrize('how', SPOIL)
def test_bad_checkpoint(run, how):
    SPOIL[how](run / 'checkpoint.pt')
    for command in ('info', 'generate', 'evaluate', 'resume'): refused(command, run, names=['checkpoint.pt'])


def test_run_of_another_set(run):
    "Other clips than those of the training are refused, be they of the same kind or not"
    golf('other', seed=1), golf('fewer', clips=2)
    for root in ('other', 'fewer'):
        for command in ('resume', 'evaluate'): refused(command, run, '--root', root, names=['run', 'other clips', '--root'])
    edit(run, config=lambda c: {**c, 'data': {**c['data'], 'dataset': 'swings'}}, clips=lambda c: {**c, 'root': ''})
    refused('resume', run, names=['run', 'other clips'])


def test_damaged_files_beside_the_checkpoint(run):
    for text in ('{"step": 1\n', '{"step": 1}\n', '3\n'):
        (run / 'metrics.jsonl').write_text(text)
        refused('info', run, names=['metrics.jsonl'])
    (run / 'metrics.jsonl').unlink()
    for text in ('{', '{}', '[]'):
        (run / 'scores.json').write_text(text)
        for command in ('resume', 'info'): refused(command, run, names=['scores.json'])


# ---- the disk

def test_place_that_is_a_file(run):
    Path('file').write_text('x')
    refused('train', 'chairs', '--runs', 'file', *SHORT, names=['file'])
    refused('generate', run, '--out', 'file', names=['file'])
    refused('generate', run, '--out', 'file/x', names=['file'])


def test_no_permission():
    "As root, permissions do not count: so become nobody for a moment"
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o555)
        was = os.geteuid()
        if was == 0: os.seteuid(65534)
        try:
            complaint(nvs('train', 'chairs', '--runs', d, *SHORT), d, 'ermission')
            complaint(nvs('demo', '--out', f'{d}/x', '--device', 'cpu'), d, 'ermission')
        finally:
            if was == 0: os.seteuid(was)
        assert os.listdir(d) == []


def limited(*args):
    "A command that cannot write files of more than 20,000 bytes, as on a disk that fills up"
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
    try: return cli.main([str(a) for a in args])
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # coverage writes at the end


def test_no_space_left(fork):
    "Where no checkpoint fits, no run stays"
    complaint(fork(limited, 'train', 'chairs', '--name', 'full', *SHORT).result(), 'runs/full/checkpoint.pt')
    assert tree() == {}


def test_no_space_left_for_a_run_that_stands(run, fork):
    "The checkpoint that stands is not harmed; with space again, all goes on"
    edit(run, config=lambda c: {**c, 'budget': {**c['budget'], 'epochs': 3}})
    before = tree()
    complaint(fork(limited, 'resume', run).result(), 'run/checkpoint.pt')
    after = tree()
    assert after.keys() == before.keys()
    assert not [k for k in before if after[k] != before[k] and 'metrics' not in k]
    done('resume', run)
    assert json.loads((run / 'scores.json').read_text())['step'] == 3


# ---- signals

def test_ctrl_c_then_resume(monkeypatch):
    press(monkeypatch)
    r = nvs('train', 'chairs', '--name', 'r', *TINY, '--set', 'frames=4', '--epochs', '10000')
    complaint(r, 'nvs resume runs/r', code=130)
    assert 'done; go on with' in done('info', 'r').out and not Path('runs/r/scores.json').exists()
    step = json.loads(Path('runs/r/metrics.jsonl').read_text().splitlines()[-1])['step']
    more = step//3 + 2  # three steps an epoch: nearly there
    edit('runs/r', config=lambda c: {**c, 'budget': {**c['budget'], 'epochs': more}})
    done('resume', 'r')
    s = json.loads(Path('runs/r/scores.json').read_text())
    assert s['step'] == 3*(step//3 + 2) > step


def test_sigterm_then_resume(fork):
    "In a process of its own, as a scheduler would end it"
    p = fork(cli.main, ['train', 'chairs', '--name', 'r', *TINY, '--set', 'frames=4', '--epochs', '1000000'])
    while not Path('runs/r/metrics.jsonl').exists() and p.poll() is None: time.sleep(.05)
    p.send_signal(signal.SIGTERM)
    complaint(p.result(60), 'nvs resume runs/r', code=143)
    have = set(os.listdir('runs/r'))
    assert {'checkpoint.pt', 'metrics.jsonl', 'config.json'} <= have and 'report.html' not in have
    step = json.loads(Path('runs/r/metrics.jsonl').read_text().splitlines()[-1])['step']
    edit('runs/r', config=lambda c: {**c, 'budget': {**c['budget'], 'epochs': step//3 + 1}})
    done('resume', 'runs/r')
    assert json.loads(Path('runs/r/scores.json').read_text())['step'] == 3*(step//3 + 1)


@pytest.mark.parametrize('signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_before_training(monkeypatch, signum, code):
    "While clips are read, there is nothing to save and nothing is left"
    monkeypatch.setattr('nvs_nb.data.clips.load_clips', lambda *_: (os.kill(os.getpid(), signum), time.sleep(5)))
    complaint(nvs('train', 'chairs', *SHORT), 'interrupted', code=code)
    assert tree() == {}


def test_signal_while_scoring(monkeypatch):
    "The run is trained and saved: the line says how to get its scores"
    with monkeypatch.context() as m:
        m.setattr('nvs_nb.evaluation.report.score_all', lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
        complaint(nvs('train', 'chairs', '--name', 'r', *SHORT), 'nvs resume runs/r', code=130)
    assert 'finished' in done('resume', 'runs/r').out and Path('runs/r/report.html').exists()


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), warnings.showwarning
    done('--version')
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), warnings.showwarning) == before


# ---- the rest

def into_a_closed_pipe(*args):
    r, w = os.pipe()
    os.dup2(w, 1), os.close(w), os.close(r)
    sys.stdout = open(1, 'w', closefd=False)
    return cli.main(args)


def test_pipe_that_closes(run, fork):
    "nvs info RUN | head -0"
    r = fork(into_a_closed_pipe, 'info', 'run').result()
    assert (r.code, r.err) == (141, '')


def test_no_memory(monkeypatch):
    monkeypatch.setattr('nvs_nb.training.trainer.Trainer.fit', lambda t: torch.empty(2**60))
    complaint(nvs('train', 'chairs', *SHORT), 'memory')
    assert tree() == {}


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr('nvs_nb.training.trainer.Trainer.fit', lambda t: 1/0)
    with pytest.raises(ZeroDivisionError): nvs('train', 'chairs', *SHORT)
    assert tree() == {}


def test_warnings_are_lines(monkeypatch):
    "A cache that cannot be written costs a line, no more"
    Path('nocache').write_text('x'), monkeypatch.setenv('NVS_CACHE', 'nocache')
    own('o', ['a', 'b'])
    r = done(*train('folder', 'o'))
    assert [x for x in r.err.split('\n') if x.startswith('nvs: note: ') and 'cache' in x], r.err
