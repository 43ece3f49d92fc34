"""Whatever comes, the answer is a result or one line: over configurations, words of the command line, the bytes and the
structure of checkpoints. A few examples of each always; many of them in `make test-all`."""
import contextlib
import copy
import io
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, configuration, given, settings, strategies as st

from nvs_nb import cli
from nvs_nb.config import Config, MODELS, make_config, sections
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_clips
from nvs_nb.models.nvs import generate
from nvs_nb.training import checkpoint
from nvs_nb.training.trainer import Trainer

configuration.set_hypothesis_home_dir(Path.home()/'.hypothesis')  # no files of its own in ours
SIZES = [10, pytest.param(1000, marks=pytest.mark.slow)]  # examples


def fuzz(examples, test, **strategies):
    "Try a function on examples; the same ones in each run."
    quiet = settings(max_examples=examples, deadline=None, derandomize=True, database=None,
                     suppress_health_check=list(HealthCheck))
    quiet(given(**strategies)(test))()


def one_line(do):
    "The result; None after an error of one line"
    try: return do()
    except NvsError as e: assert '\n' not in str(e) and len(str(e)) < 1000, str(e)


WORDS = st.text(max_size=9) | st.sampled_from([
    '', '-', '--', '0', '-1', '1e999', 'nan', '9' * 400, '~', '..', '\0', '\udcff', 'a/b', 'x=1', '[', '[a',
    '*', 'runs', 'True', '\x1b[2J'])
SCALARS = WORDS | st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | st.binary(max_size=3)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(WORDS, x, max_size=3), max_leaves=5)

# ---- configurations

SETTINGS = sorted({f'{s}.{n}' if s else n for m in MODELS for s, fields in sections(m).items() for n in fields}
                  - {'preset'})
NEARLY = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 100, .5, 'auto', 'none', 'batch', 'sgd', 'crop', True])


@pytest.mark.parametrize('examples', SIZES)
def test_configurations(examples):
    "Also: what is accepted comes back from its dictionary"
    def change(name, changes):
        c = one_line(lambda: make_config('chairs', 'released' if name == 'released' else 'fast', name, **changes))
        if c: assert Config.from_dict(c.to_dict(), strict=True) == c and len(c.hash()) == 8
    fuzz(examples, change, name=st.sampled_from([*MODELS]),
         changes=st.dictionaries(st.sampled_from(SETTINGS) | WORDS, NEARLY | VALUES, max_size=4))
    def read(d, strict): one_line(lambda: Config.from_dict(d, strict))
    part = st.dictionaries(st.sampled_from(['name', 'width', 'batch', 'size']) | WORDS, VALUES)
    keys = st.sampled_from(['data', 'model', 'optim', 'budget', 'runtime', 'seed']) | WORDS
    nested = st.dictionaries(keys, part | VALUES)
    fuzz(examples, read, d=nested | VALUES, strict=st.booleans())


# ---- the command line

OPTIONS = ('--root --runs --name --preset --model --set --seconds --device --fps --scale --out --seed --keep --clips '
           '--vgg16 --from --only --size --frames --help').split()
COMMANDS = 'train resume tune generate evaluate pack unpack compare info demo reproduce cache data get clear'.split()
PLACES = ['run', 'run/checkpoint.pt', 'chairs', 'golf', 'folder', 'pretrained', 'cpu', 'optim.batch=2', 'nvs', 'vgan']


@pytest.mark.parametrize('examples', SIZES)
def test_words_of_the_command_line(examples, tiny_run, tmp_path, monkeypatch):
    "Nothing is trained, scored or fetched here; up to there all is as it is. No traceback, a known exit code"
    def stop(*_, **__): raise NvsError('enough')
    monkeypatch.chdir(tmp_path)
    os.rename(tiny_run, 'run')
    for what in ('nvs_nb.training.trainer.Trainer.fit', 'nvs_nb.paper.reproduce.reproduce', 'nvs_nb.data.download.get',
                 'nvs_nb.evaluation.report.finish', 'nvs_nb.paper.baselines.compare'): monkeypatch.setattr(what, stop)
    def run(command, words):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = cli.main([*command, *words])
        assert code in (0, 2) and 'Traceback' not in err.getvalue(), err.getvalue()
        if code: assert len([x for x in err.getvalue().splitlines() if x.startswith('nvs: ')]) >= 1
    fuzz(examples, run, command=st.lists(st.sampled_from(COMMANDS), min_size=1, max_size=2),
         words=st.lists(st.sampled_from(OPTIONS) | st.sampled_from(PLACES) | WORDS, max_size=5))


# ---- checkpoints

@pytest.mark.parametrize('examples', SIZES)
def test_bytes_of_a_checkpoint(examples, tmp_path):
    "Some are changed, left out or put in"
    data, path = (checkpoint.PRETRAINED/'checkpoint.pt').read_bytes(), tmp_path/'x.pt'
    ends = st.integers(0, 8000) | st.integers(-8000, -1) | st.integers(0, len(data))  # where the structure is
    def spoil(at, cut, more):
        i = at % len(data)
        path.write_bytes(data[:i] + more + data[i + cut:])
        one_line(lambda: checkpoint.load_run(path))
    fuzz(examples, spoil, at=ends, cut=st.integers(0, 9), more=st.binary(max_size=9))


TENSORS = st.builds(lambda shape, kind, fill: torch.full(shape, fill).to(kind),
                    st.lists(st.integers(0, 9), max_size=5).map(tuple),
                    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.float64, torch.bool]),
                    st.sampled_from([0., 1., -1., 1e30, float('nan'), float('inf')]))
VIEWS = st.sampled_from([torch.clone, lambda x: x.mT if x.ndim > 1 else x, lambda x: x.flatten(), lambda x: -x - 1,
                         lambda x: torch.zeros((), dtype=x.dtype).expand(x.shape), torch.Tensor.half,
                         lambda x: x * 1e38, lambda x: torch.zeros(*x.shape, 2, dtype=x.dtype)[..., 0]])


def leaf(x, choices):
    "`(container, key)` somewhere in nested dictionaries and lists"
    for n in choices:
        keys = [*x] if isinstance(x, dict) else [*range(len(x))]
        if not keys: return None
        key = keys[n % len(keys)]
        if not isinstance(x[key], (dict, list)) or n % 5 == 0: return x, key
        x = x[key]
    return x and (x, [*x][0] if isinstance(x, dict) else 0)


@pytest.mark.parametrize('examples', SIZES)
def test_structure_of_a_checkpoint(examples, tiny_run):
    "Another value, tensor or view anywhere, or none: refused, or a run that generates and goes on"
    path = tiny_run/'checkpoint.pt'
    good = torch.load(path, weights_only=True)
    clips = load_clips(Config.from_dict(good['config']))
    good['config']['budget']['epochs'] = 10**6
    def use():
        model, *_, about, _ = checkpoint.load_run(tiny_run)
        generate(model, about['static_id'][:2], about['transient_id'][:2])
        t = Trainer.resume(tiny_run, clips, device='cpu', progress=False)
        for _ in range(2): t.advance()
    def spoil(where, value, view, how):
        state = copy.deepcopy(good)
        container, key = leaf(state, where)
        if how == 'view' and torch.is_tensor(container[key]): container[key] = view(container[key])
        elif how == 'drop': del container[key]
        else: container[key] = value
        torch.save(state, path)
        one_line(use)
    fuzz(examples // 2, spoil, where=st.lists(st.integers(0, 99), min_size=1, max_size=6), value=VALUES | TENSORS,
         view=VIEWS, how=st.sampled_from(['view', 'value', 'drop']))
