"Several processes at one folder, signals, kills, full disks, surroundings that are wrong: nothing is lost or left."
import json
import os
import pwd
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from nvs_nb import core
from nvs_nb.cli import main
from nvs_nb.core import MARK, Busy, NvsError, atomic_write, expand, hold, one_line, read_json, stop_signals
from nvs_nb.data import download
from nvs_nb.data.clips import load_clips
from nvs_nb.training import checkpoint, runtime, trainer
from nvs_nb.training.checkpoint import is_free, load_checkpoint, new_folder, numbered, place_run
from nvs_nb.training.trainer import Callback, Trainer

QUIET = dict(device='cpu', progress=False)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


def elsewhere(function, *args):
    "What a function gives or raises in a thread of its own: a lock keeps it out as it does another process"
    out = []
    def work():
        try: out.append(function(*args))
        except BaseException as e: out.append(e)
    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    return out[0]


def holding(path):
    with hold(path): return True


def tree(path='.'): return sorted(p.relative_to(path).as_posix() for p in Path(path).rglob('*'))


def begun(run, **changes):
    "The trainer of a finished run as it was before the first step, with other settings"
    c = checkpoint.Config.from_dict(read_json(run/'config.json')).replace(**changes)
    return Trainer(c, load_clips(c), run.with_name('new'), **QUIET)


# ---- one process at a time

def die_holding(path):
    with hold(path): os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_is_held_by_one_process(fork):
    with hold('a'):
        with hold('a'): pass
        told = elsewhere(holding, 'a')
        assert isinstance(told, Busy) and str(told).startswith(f'a: another process (number {os.getpid()}) is at work')
    assert tree() == [] and elsewhere(holding, 'a')
    assert fork(die_holding, 'a').result().code == -signal.SIGKILL and tree() == ['a', 'a/.lock']
    assert holding('a') and is_free(Path('a'))


def test_one_name_is_given_once(monkeypatch):
    "Both have looked, and found it free; numbered folders are another one each"
    monkeypatch.setattr(checkpoint, 'is_free', lambda path: True)
    def reserve(paths):
        with new_folder(paths) as path: return path.name
    with new_folder([Path('runs/a')]): assert isinstance(elsewhere(reserve, [Path('runs/a')]), Busy)
    with new_folder(numbered(Path('runs/b'))): assert elsewhere(reserve, numbered(Path('runs/b'))) == 'b-2'


def test_a_run_at_work_is_left_alone(tiny_run, capsys):
    before = {p: p.read_bytes() for p in tiny_run.rglob('*') if p.is_file() and p.name != '.lock'}
    with hold(tiny_run):
        for command in 'resume', 'evaluate':
            assert elsewhere(main, [command, str(tiny_run), '--device', 'cpu']) == 2
            err = capsys.readouterr().err
            assert f'number {os.getpid()}) is at work' in err and err.count('\n') == 1
        assert elsewhere(main, ['generate', str(tiny_run), '--out', 'out', '--format', 'gif']) == 0
    assert {p: p.read_bytes() for p in before} == before


def test_a_trainer_does_not_go_back_behind_another(tiny_run):
    early = begun(tiny_run)
    clips = early.clips
    begun(tiny_run).fit(until=2)
    with pytest.raises(NvsError, match='another process meanwhile'): early.fit()
    late = Trainer.resume(early.run, clips, **QUIET)
    Trainer.resume(early.run, clips, **QUIET).fit(until=4)
    with pytest.raises(NvsError, match='another process meanwhile'): late.fit()
    assert load_checkpoint(early.run/'checkpoint.pt')['trainer']['step'] == 4
    assert [json.loads(x)['step'] for x in (early.run/'metrics.jsonl').read_text().splitlines()] == [2, 4]


def test_one_writer_of_a_download():
    Path('golf.tar.bz2').write_bytes(b'')
    with hold('sets/archives', name='.golf.lock'):
        told = elsewhere(download.get, 'golf', 'sets', 'golf.tar.bz2')
        assert isinstance(told, Busy), told
        assert isinstance(elsewhere(download.get, 'chairs', 'sets', 'golf.tar.bz2'), download.Damaged)  # another one
    assert tree() == ['golf.tar.bz2']


# ---- kills

def test_there_is_something_to_resume_from_the_start(tiny_run):
    "A kill in the first steps; what it left beside the files is removed by the next start"
    class Kill(Callback):
        def step(self, t): raise SystemExit
    whole = begun(tiny_run, epochs=1).fit()
    shutil.rmtree(whole.run)
    cut = begun(tiny_run, epochs=1)
    cut.callbacks.append(Kill())
    with pytest.raises(SystemExit): cut.fit()
    assert load_checkpoint(cut.run/'checkpoint.pt')['trainer']['step'] == 0
    (cut.run/'samples').mkdir()
    for name in f'.checkpoint{MARK}1.pt', f'samples/.step{MARK}2.png': (cut.run/name).write_bytes(b'half')
    back = Trainer.resume(cut.run, cut.clips, **QUIET).fit()
    for k, w in whole.model.state_dict().items(): assert torch.equal(w, back.model.state_dict()[k])
    assert not [name for name in tree(cut.run) if MARK in name]


def test_advice_leads_somewhere(tiny_run, monkeypatch):
    "A name is taken: by a run, by something else, or by nothing but what a kill has left of an empty folder"
    for name, files in dict(run=['checkpoint.pt'], other=['notes.txt'], left=['.lock', f'.config{MARK}1.json']).items():
        Path('runs', name).mkdir(parents=True)
        for file in files: Path('runs', name, file).touch()
    with pytest.raises(NvsError, match='taken.*nvs resume runs/run'): place_run('runs', '', 'run')
    with pytest.raises(NvsError, match='taken; another name$'): place_run('runs', '', 'other')
    assert place_run('runs', '', 'left') == [Path('runs/left')]


def test_what_has_learnt_nothing_goes():
    for kept in False, True:
        with pytest.raises(KeyboardInterrupt), new_folder([Path('runs/a')]) as path:
            (path/'checkpoint.pt').touch(), (path/'samples').mkdir()
            if kept: (path/'metrics.jsonl').touch()
            raise KeyboardInterrupt
        assert path.exists() == kept and ('checkpoint.pt' in tree(path)) == kept


# ---- files

def test_files_reach_the_disk_before_their_names(monkeypatch):
    did, replace, fsync = [], os.replace, os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: did.append(Path(f'/proc/self/fd/{fd}').resolve().is_dir()) or fsync(fd))
    monkeypatch.setattr(os, 'replace', lambda *a: did.append('renamed') or replace(*a))
    atomic_write('x.txt', lambda tmp: tmp.write_text('x'))
    if Path('/proc/self/fd').exists(): assert did == [False, 'renamed', True]
    assert did.index('renamed') == 1 and len(did) == 3


def test_a_file_system_that_cannot_flush(monkeypatch):
    def fsync(fd): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, 'fsync', fsync)
    number = core.errno.EINVAL
    atomic_write('x.txt', lambda tmp: tmp.write_text('x'))
    number = core.errno.ENOSPC
    with pytest.raises(NvsError, match='cannot write x.txt: No space left'): atomic_write('x.txt', Path.touch)
    assert tree() == ['x.txt'] and Path('x.txt').read_text() == 'x'


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='a file of Linux that is always full')
def test_a_full_disk_says_so(tiny_run, monkeypatch, capsys):
    "Checkpoint and metrics; what stands is not harmed"
    t = begun(tiny_run).fit(until=2)
    before = (t.run/'checkpoint.pt').read_bytes()
    for module, name, steps in (checkpoint, 'checkpoint.pt', 4), (trainer, 'metrics.jsonl', 6):
        with monkeypatch.context() as m:
            m.setattr(module, 'open', lambda path, *a, **kw: open('/dev/full', *a, **kw), raising=False)
            with pytest.raises(NvsError, match=f'cannot write .*new/{name}: No space left'): t.fit(until=steps)
    assert (t.run/'checkpoint.pt').read_bytes() == before
    assert Trainer.resume(t.run, t.clips, **QUIET).fit().done() == 1


def test_a_preview_that_cannot_be_written_is_a_note(tiny_run):
    t = begun(tiny_run)
    t.run.mkdir(), (t.run/'samples').touch()
    with pytest.warns(UserWarning, match='no picture of step 6: .*samples'): t.fit()
    assert load_checkpoint(t.run/'checkpoint.pt')['trainer']['step'] == t.steps == 6


# ---- signals

def test_signals_that_stop():
    "The first one asks; a second Ctrl-C interrupts, other signals may come twice"
    was = [signal.getsignal(s) for s in core.STOPS]
    for first in signal.SIGHUP, signal.SIGTERM, signal.SIGINT:
        with stop_signals() as stop:
            for s in first, signal.SIGHUP, signal.SIGTERM: signal.raise_signal(s)
            assert stop.signum == first
            with pytest.raises(KeyboardInterrupt): signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(s) for s in core.STOPS] == was


@pytest.mark.parametrize('signum, code', [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes_of_signals(signum, code, capsys):
    with pytest.raises(SystemExit) as e, one_line():
        try: signal.raise_signal(signum)
        except KeyboardInterrupt as stop: raise type(stop)('what to do') from None
    assert e.value.code == code and capsys.readouterr().err == 'nvs: interrupted; what to do\n'


def test_what_is_ignored_stays_ignored(monkeypatch):
    "As under nohup"
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with one_line(), stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, was)


def test_a_signal_while_the_last_things_are_written(tiny_run):
    class Late(Callback):
        def end(self, t): signal.raise_signal(signal.SIGTERM)
    t = begun(tiny_run)
    t.callbacks.append(Late())
    assert t.fit().stopped == signal.SIGTERM and t.done() == 1


# ---- what a command says

def test_a_training_that_failed_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr('nvs_nb.paper.reproduce.reproduce', lambda *a, **kw: {'chairs/full': 'no luck'})
    assert main(['reproduce', 'chairs']) == 2
    told = capsys.readouterr()
    assert 'chairs/full: no luck' in told.out and told.err.startswith('nvs: 1 training failed: chairs/full')


TWO = dict(WORLD_SIZE='2', RANK='0', LOCAL_RANK='0', MASTER_ADDR='localhost', MASTER_PORT='29500')


@pytest.mark.parametrize('name, value', [
    ('WORLD_SIZE', 'abc'), ('WORLD_SIZE', '0'), ('WORLD_SIZE', '-2'), ('WORLD_SIZE', '²'), ('WORLD_SIZE', '9' * 400),
    ('RANK', 'x'), ('RANK', '2'), ('RANK', None), ('LOCAL_RANK', '-1'), ('LOCAL_RANK', '1.5'), ('MASTER_PORT', 'http'),
    ('MASTER_PORT', '99999'), ('MASTER_PORT', None), ('MASTER_ADDR', None)])
def test_variables_of_torchrun(monkeypatch, name, value):
    for k, v in {**TWO, name: value}.items(): monkeypatch.delenv(k, False) if v is None else monkeypatch.setenv(k, v)
    with pytest.raises(NvsError, match=name): runtime.join('cpu')


@pytest.mark.parametrize('source', ['http://[::1', 'https://[bad]/rendered_chairs.tar', '~nosuchuser/x'])
def test_sources_that_are_none(source):
    with pytest.raises(NvsError, match='nosuchuser|no address'): download.get('chairs', 'sets', source)
    assert tree() == []


def test_users_without_a_home(monkeypatch, capsys):
    monkeypatch.setattr(pwd, 'getpwuid', lambda uid: {}[uid])
    monkeypatch.delenv('HOME')
    for path in '~nosuchuser/x', '~/x':
        with pytest.raises(NvsError, match=f'^{path}: no such user') as e: expand(path)
        assert ('NVS_CACHE' in str(e.value)) == (path == '~/x')  # of another user it would be no help
    for args in (['data', 'info', '--root', '~/x'], ['data', 'get', 'golf', '--root', '~nosuchuser'],
                 ['compare', 'pretrained', '--out', 'a\0b']):
        assert main(args) == 2 and capsys.readouterr().err.count('\n') == 1


def test_no_compiler():
    from torch._inductor.exc import InvalidCxxCompiler
    with pytest.raises(NvsError, match='runtime.compile=true: .*compiler'), runtime.compiler_errors():
        raise InvalidCxxCompiler
    with pytest.raises(ZeroDivisionError), runtime.compiler_errors(): 1/0
