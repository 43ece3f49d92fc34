"""A run that a stranger made. Whatever its files hold: one `NvsError`, before anything is built or used, or a run that
can be used."""
import copy
import io
import json
import os
import pickle
import resource
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from nvs_nb.config import MODELS, make_config
from nvs_nb.core import NvsError, read_json
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation.report import read_scores
from nvs_nb.training.checkpoint import PRETRAINED, load_run, open_run, read_metrics, shrink
from nvs_nb.training.trainer import Trainer

SMALL = dict(size=32, width=16, batch=3, threads=1, epochs=9)
LATENT = dict(d_s=6, d_t=5, hidden=8, levels=3, frames=4)
KINDS = {name: dict(model=name, **(LATENT if name in ('nvs', 'released') else dict(frames=8))) for name in MODELS}
KINDS |= {'sgd': dict(KINDS['nvs'], latent_opt='sgd'), 'sparse': dict(KINDS['nvs'], latent_opt='sparse_adam')}
KINDS['released']['batch'] = 1


def clips_of(c): return load_set('chairs', size=32, frames=c.data.frames).subset(range(6))


@pytest.fixture(scope='module')
def states(tmp_path_factory):
    "For each model and optimiser: its clips, and the checkpoint of a run that has been interrupted"
    out = {}
    for kind, changes in KINDS.items():
        c = make_config('chairs', 'released' if kind == 'released' else 'fast', **SMALL | changes)
        clips, run = clips_of(c), tmp_path_factory.mktemp('runs')/kind
        Trainer(c, clips, run, device='cpu', progress=False).fit(until=2)
        out[kind] = clips, torch.load(run/'checkpoint.pt', weights_only=True)
    return out


@pytest.fixture(params=KINDS)
def state(request, states):
    "Clips and a checkpoint to spoil"
    return copy.deepcopy(states[request.param])


def write(state, path='run/checkpoint.pt'):
    Path(path).parent.mkdir(exist_ok=True)
    torch.save(state, path)
    return Path(path).parent


def resume(clips, state): return Trainer.resume(write(state), clips, device='cpu', progress=False)


def refused(do, *args, told=''):
    with pytest.raises(NvsError) as e: do(*args)
    line = str(e.value)
    assert '\n' not in line and len(line) < 400 and told in line, line


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)


# ---- tensors

def tensors_of(state):
    "`(dictionary, key)` of a weight, and of an average and a step count of each optimiser"
    yield state['model'], next(k for k in state['model'] if k.endswith('weight'))
    for o in state['trainer']['opt'].values():
        for s in list(o['state'].values())[:1]: yield from ((s, k) for k in s)


OTHERS = dict(
    shape=lambda x: torch.zeros(*x.shape, 2), row=lambda x: torch.zeros(x.numel() + 1), empty=lambda x: torch.zeros(0),
    rows=lambda x: torch.zeros(1).expand(10**6, 10**3), double=lambda x: x.double(), int32=lambda x: x.int(),
    float8=lambda x: x.to(torch.float8_e5m2), complex=lambda x: x.cfloat(),
    sparse=lambda x: x.reshape(1, -1).to_sparse(),
    quantized=lambda x: torch.quantize_per_tensor(x, .1, 0, torch.qint8), meta=lambda x: x.to('meta'),
    parameter=torch.nn.Parameter, nested=lambda x: torch.nested.nested_tensor([x.flatten()]), none=lambda x: None,
    text=lambda x: 'x', bool=lambda x: True, list=lambda x: [1.], bytearray=lambda x: bytearray(9),
    big=lambda x: 10**400)


@pytest.mark.filterwarnings('ignore')
def test_other_tensors_are_refused(state):
    "Averages of other shapes once made the fused Adam write where it may not"
    clips, good = state
    places = list(tensors_of(good))
    for n, other in enumerate(OTHERS):  # each in another place
        holder, key = places[n % len(places)]
        kept = holder[key]
        holder[key] = OTHERS[other](torch.as_tensor(kept).float())
        refused(resume, clips, good)
        holder[key] = kept


def test_memory_of_averages_is_laid_out_anew(state):
    "Strides of another kind, even of one element for all, change no value and reach no other memory"
    clips, good = state
    want = resume(clips, good).fit(until=4)
    for holder, key in tensors_of(good):
        if torch.is_tensor(x := holder[key]) and x.ndim > 1:
            holder[key] = x.transpose(0, 1).contiguous().transpose(0, 1)
    told = resume(clips, good).fit(until=4)
    for a, b in zip(tree_leaves(want.model.state_dict()), tree_leaves(told.model.state_dict()), strict=True):
        assert torch.equal(a, b)


def test_one_element_for_all_is_refused(state):
    "Small files that claim much: each model whose weights are views of one number"
    clips, good = state
    good['model'] = {k: torch.zeros(()).expand(x.shape) if x.is_floating_point() else x
                     for k, x in good['model'].items()}
    for o in good['trainer']['opt'].values(): o['state'] = {}
    refused(resume, clips, good, told='more bytes than it holds')


def test_a_large_model_is_refused_before_there_is_memory_for_it(state):
    "Gigabytes of weights"
    _, good = state
    large = dict(hidden=8192, width=4096, d_width=1024, e_width=1024)
    good['config']['model'].update({k: v for k, v in large.items() if k in good['config']['model']})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(load_run, write(good), told='whose model is larger')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# ---- everything else that a checkpoint says

ODD = [None, True, -1, .5, float('nan'), float('inf'), 10**400, 2**63, 'x', b'x', [], {}, [None], torch.tensor(1),
       torch.zeros(2), (1,), [[]], {'x': 1}]
FIELDS = [('format',), ('version',), ('config',), ('model',), ('clips',), ('trainer',), ('clips', 'names'),
          ('clips', 'static_id'), ('clips', 'transient_names'), ('clips', 'dataset'), ('clips', 'root'),
          ('trainer', 'step'), ('trainer', 'seconds'), ('trainer', 'clips_seen'), ('trainer', 'opt'),
          ('trainer', 'opt', 'G'), ('trainer', 'opt', 'G', 'state'), ('trainer', 'opt', 'G', 'state', 0),
          ('config', 'seed'), ('config', 'model', 'width'), ('config', 'data', 'frames'), ('config', 'optim')]
MAY = {'trainer': ['None'], 'root': ["'x'"], 'dataset': ["'x'"], 'seconds': ['0.5', 'tensor(1)', str(2**63)],
       'state': ['{}'], 'optim': ['{}']}  # what is no mistake


@pytest.mark.parametrize('field', FIELDS, ids=lambda f: '.'.join(map(str, f)))
def test_every_field_is_checked(states, field):
    clips, good = copy.deepcopy(states['sgd'])
    if field[0] != 'trainer': good['trainer'] = None
    holder = good
    for key in field[:-1]: holder = holder[key]
    for odd in ODD:
        if repr(odd) in MAY.get(field[-1], []): continue
        holder[field[-1]] = odd
        refused(*(resume, clips, good) if field[0] == 'trainer' else (load_run, write(good)))
    del holder[field[-1]]
    if field[-1] in ('seed', 'width', 'frames', 'optim', 0): return  # settings have defaults; some have no average
    refused(resume, clips, good)


@pytest.mark.parametrize('change', [
    dict(names=['a'] * 6), dict(names=list('abcde')), dict(static_id=[0] * 5), dict(transient_id=[99] + [0] * 5),
    dict(static_id=[-1] + [0] * 5), dict(static_id=[True] + [0] * 5), dict(static_names=[]), dict(names=[1, *'abcde']),
    dict(root='a\0b'), dict(more=1)], ids=str)
def test_clips_agree_with_each_other(states, change):
    clips, good = copy.deepcopy(states['nvs'])
    good['clips'].update(change)
    refused(resume, clips, good, told='damaged at')


def test_optimisers_of_another_model(states):
    clips, good = copy.deepcopy(states['vgan'])
    opt = good['trainer']['opt']
    for other in (dict(G=opt['G']), dict(G=opt['D'], D=opt['G']), {**opt, 'R': opt['G']}, {}):
        good['trainer']['opt'] = other
        refused(resume, clips, good, told='damaged')


def test_damage_of_a_bit_is_seen():
    "The sums of the archive are looked at"
    data = bytearray((PRETRAINED/'checkpoint.pt').read_bytes())
    data[len(data)//2] ^= 16
    Path('x.pt').write_bytes(data)
    refused(load_run, 'x.pt', told='damaged')


def test_a_folder_that_is_no_utf8():
    "Its runs can be read"
    folder = Path(os.fsdecode(b'caf\xe9'))
    try: folder.mkdir()
    except OSError: pytest.skip('this file system wants UTF-8')
    shrink(PRETRAINED, folder/'checkpoint.pt')
    assert len(load_run(folder)[2]['names']) == 18


# ---- files that are no checkpoint

class Evil:
    def __reduce__(self): return os.system, ('touch PWNED',)


def archive(*members, kind=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(f := io.BytesIO(), 'w', kind) as z:
        warnings.simplefilter('ignore')
        for name, data in members: z.writestr(f'a/{name}', data)
    return f.getvalue()


def saved(x, **kw):
    torch.save(x, f := io.BytesIO(), **kw)
    return f.getvalue()


def members_of_pretrained():
    with zipfile.ZipFile(PRETRAINED/'checkpoint.pt') as z:
        return [(m.filename.split('/', 1)[1], z.read(m)) for m in z.infolist()]


def tarred():
    with tarfile.open(fileobj=(f := io.BytesIO()), mode='w') as t: t.addfile(tarfile.TarInfo('pickle'))
    return f.getvalue()


def pickled(code): return archive(('data.pkl', b'\x80\x02' + code), ('byteorder', b'little'), ('version', b'3\n'))


FILES = dict(
    empty=lambda: b'', noise=lambda: bytes(range(256)) * 9, pickle=lambda: pickle.dumps({}), tar=tarred,
    legacy=lambda: saved({}, _use_new_zipfile_serialization=False), code=lambda: saved(Evil()),
    bomb=lambda: archive(*members_of_pretrained(), kind=zipfile.ZIP_DEFLATED),
    two=lambda: archive(*members_of_pretrained(), ('DATA.PKL', b'N.')),
    short=lambda: archive(*((n, x[:9] if n == 'data/0' else x) for n, x in members_of_pretrained())),
    less=lambda: archive(*(m for m in members_of_pretrained() if m[0] != 'data/3')),
    many=lambda: archive(('data.pkl', b'N.'), *((f'data/{i}', b'') for i in range(20_000))),
    deep=lambda: pickled(b']' * 50_000 + b'a' * 49_999 + b'.'), endless=lambda: pickled(b'}' * 300_000 + b'.'),
    long=lambda: pickled(b'X' + struct.pack('<I', 2**31) + b'abc.'),
    digits=lambda: pickled(b'I' + b'9' * 5000 + b'\n.'),
    memo=lambda: pickled(b']r' + struct.pack('<I', 2**32 - 1) + b'.'),
    list=lambda: saved([1]), none=lambda: saved(None))


@pytest.mark.parametrize('kind', FILES)
def test_file_that_is_no_checkpoint(kind):
    Path('x.pt').write_bytes(FILES[kind]())
    refused(load_run, 'x.pt', told='x.pt: ')
    assert not Path('PWNED').exists()


def test_path_that_is_no_file():
    "None of them is waited for"
    os.mkfifo('pipe')
    os.symlink('loop', 'loop')
    Path('folder/checkpoint.pt').mkdir(parents=True)
    for path in 'pipe', 'loop', 'folder', 'nothing', 'pipe/x', '/dev/null', 'a' * 300:
        refused(load_run, path)
        refused(open_run, path)


# ---- the other files of a run

TEXTS = dict(deep=b'[' * 100_000, nested=b'{"a":' * 100_000, digits=b'9' * 400, more_digits=b'9' * 5000, nan=b'NaN',
             large=b'1e999', bytes=b'\xff\xfe', text=b'hello', nothing=b'', null=b'null', number=b'5', list=b'[[]]')


@pytest.mark.parametrize('kind', TEXTS)
def test_json_of_any_content(kind):
    text = TEXTS[kind]
    Path('scores.json').write_bytes(text)
    refused(read_scores, '.', told='scores.json')
    for line in text + b'\n', b'{"step": 1, "epoch": 1, "seconds": ' + (text or b'""') + b'}\n':
        Path('metrics.jsonl').write_bytes(line)
        if kind != 'number' or b'step' not in line: refused(read_metrics, '.', told='metrics.jsonl')


@pytest.mark.parametrize('name, read', [('scores.json', read_scores), ('metrics.jsonl', read_metrics)])
def test_no_file_of_text(name, read):
    os.mkfifo(name)
    refused(read, '.', told=name)
    Path(name).unlink()
    with open(name, 'wb') as f: f.truncate(2**40)
    refused(read, '.', told=name)
    Path(name).unlink()
    assert not read('.')


def test_numbers_that_json_can_hold():
    for x in 1, -2.5, 10**300, 1e-400, [], 'x', None:
        Path('x.json').write_text(json.dumps(x))
        assert read_json('x.json') == x
