"Runs as small files: what packing loses, what an unpacked run can do, what a stranger's file cannot; bytes against dB."
import json
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nvs_nb import cli
from nvs_nb.bench import codec
from nvs_nb.config import MODELS, make_config
from nvs_nb.core import NvsError, read_json
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation.metrics import psnr
from nvs_nb.models.build import build_model
from nvs_nb.models.nvs import generate
from nvs_nb.training.checkpoint import open_run, run_clips
from nvs_nb.training.pack import BLOCK, PARTS, from_bytes, large, load_packed, pack, packed_size, quantised, to_bytes, unpack

SMALL = dict(size=32, width=16, threads=1, epochs=9)
LATENT = dict(d_s=6, d_t=5, hidden=8, levels=3, frames=4)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('nvs_nb.training.pack.LEAST', 64)  # small models have small tensors


def refused(do, *args, told=''):
    with pytest.raises(NvsError) as e: do(*args)
    line = str(e.value)
    assert '\n' not in line and len(line) < 400 and told in line, line


# ---- what is lost

def test_eight_bits_lose_nothing_to_speak_of():
    run = open_run('pretrained')
    clips, dB = run_clips(run).subset(range(0, 18, 3)), {}
    for bits in (32, 8, 6):
        dB[bits] = psnr(clips.frames, generate(quantised(run.model, bits), clips.static_id, clips.transient_id))
    lost = dB[32] - dB[8]
    assert lost.mean() < .05 and lost.max() < .1 and (dB[32] - dB[6]).mean() > 3 * lost.mean()
    assert packed_size(run.model) < 1.2 * sum(p.numel() for p in run.model.parameters())


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('bits', [2, 8, 16, 32])
def test_every_model_comes_back(name, bits):
    "Every tensor within half a step of its block, and what is small to the bit"
    c = make_config('chairs', 'released' if name == 'released' else 'fast', model=name, **SMALL,
                    **(LATENT if name in ('nvs', 'released') else dict(frames=8)))
    model = build_model(c, 2, 3)
    for x in model.state_dict().values():
        if x.is_floating_point(): x.copy_(torch.randn(x.shape))
    there, names = quantised(model, bits).state_dict(), large(model)
    assert len(names) > 3
    for k, x in model.state_dict().items():
        if not x.is_floating_point(): continue
        if k not in names or bits == 32: assert torch.equal(there[k], x), k
        elif bits == 16: torch.testing.assert_close(there[k], x, rtol=1e-3, atol=1e-6)
        else:
            pad = lambda y: torch.nn.functional.pad(y.flatten(), (0, -y.numel() % BLOCK)).view(-1, BLOCK)
            most = pad(x).abs().amax(1, keepdim=True)
            assert (pad(there[k] - x).abs() <= most / (2**(bits - 1) - 1) * .51).all(), k


LINEAR = nn.Linear(64, 64)

def test_numbers_of_another_model_are_refused():
    weights, scales, rest = to_bytes(LINEAR)
    for parts in ((weights[:-1], scales, rest), (weights + b'x', scales, rest), (weights, scales, rest[4:]),
                  (weights, scales[2:], rest), (b'', b'', b'')):
        refused(from_bytes, LINEAR, 8, *parts, told='as many')
    for bad in np.nan, np.inf:
        refused(from_bytes, LINEAR, 8, weights, np.full(256, bad, '<f2').tobytes(), rest, told='non-finite')
        refused(from_bytes, LINEAR, 8, weights, scales, np.full(64, bad, '<f4').tobytes(), told='non-finite')


# ---- the file, and what can be done with it

def test_numbers_too_large_are_refused():
    model = nn.Linear(64, 64)
    with torch.no_grad(): model.weight[0] = 1e5  # more than a half can hold
    refused(to_bytes, model, 16, told='too large for 16 bits')
    to_bytes(model, 8)  # with scales it is not too large
    with torch.no_grad(): model.weight[0] = 1e8
    refused(to_bytes, model, 8, told='too large for 8 bits')
    with torch.no_grad(): model.bias[0] = np.nan
    for bits in (8, 16, 32): refused(to_bytes, model, bits, told='too large')


def test_pack_and_unpack(tiny_run, capsys):
    assert cli.main(['pack', str(tiny_run)]) == 0 and Path('tiny_run.nvs').stat().st_size < 40_000
    assert cli.main(['pack', str(tiny_run)]) == 2 and 'is there already' in capsys.readouterr().err
    assert cli.main(['unpack', 'tiny_run.nvs']) == 0 and cli.main(['unpack', 'tiny_run.nvs']) == 0
    was, now = open_run(tiny_run), open_run('tiny_run-2')
    assert now.config == was.config and now.about == {**was.about, 'root': ''}
    want = generate(quantised(was.model), was.about['static_id'], was.about['transient_id'])
    assert np.array_equal(generate(now.model, was.about['static_id'], was.about['transient_id']), want)
    capsys.readouterr()
    for command in ('info', 'generate'): assert cli.main([command, 'runs/tiny_run']) == 0
    assert 'weights only' in capsys.readouterr().out
    assert cli.main(['resume', 'runs/tiny_run', '--device', 'cpu']) == 2 and 'weights only' in capsys.readouterr().err
    assert cli.main(['unpack', 'tiny_run.nvs', '--name', '../x']) == 2 and not Path('../x').exists()
    assert cli.main(['pack', str(tiny_run), '--bits', '9', '--out', 'y.nvs']) == 2 and not Path('y.nvs').exists()


def test_the_same_run_gives_the_same_file(tiny_run):
    for name in 'ab': pack(tiny_run, name)
    assert Path('a').read_bytes() == Path('b').read_bytes()
    unpack('a', 'run')
    pack('run', 'c')  # once more loses nothing
    assert load_packed('c')[0].G.net[0].weight.sub(load_packed('a')[0].G.net[0].weight).abs().max() < 1e-6


# ---- files of strangers

@pytest.fixture
def parts(tiny_run):
    pack(tiny_run, 'good.nvs')
    with zipfile.ZipFile('good.nvs') as z: return {n: z.read(n) for n in z.namelist()}


def rewrite(parts, names=PARTS, kinds=(0, 8, 8, 8), path='bad.nvs'):
    with zipfile.ZipFile(path, 'w') as z:
        for name, kind in zip(names, kinds): z.writestr(zipfile.ZipInfo(name), parts[name], kind)
    return path


def test_what_is_no_packed_run(parts, tmp_path):
    data = Path('good.nvs').read_bytes()
    for n in (0, 4, 100, len(data) // 2, len(data) - 1): refused(load_packed, write(data[:n]), told='bad.nvs')
    for n in range(0, len(data), len(data) // 50):  # one byte of it
        try: load_packed(write(data[:n] + bytes([data[n] ^ 255]) + data[n + 1:]))
        except NvsError as e: assert '\n' not in str(e)
    refused(load_packed, 'gone.nvs', told='no such file'), refused(load_packed, str(tmp_path), told='not a file')
    evil = pickle.dumps(dict(a=1))
    refused(load_packed, rewrite(parts | {'data.pkl': evil}, ['data.pkl', *PARTS[1:]]), told='another kind')
    refused(load_packed, rewrite(parts | {'run.json': evil}), told='not a packed run')
    refused(load_packed, rewrite(parts | {'../x': b''}, [*PARTS, '../x'], (0, 8, 8, 8, 8)), told='another kind')
    refused(load_packed, rewrite(parts, kinds=(8, 8, 8, 8)), told='another kind')  # a text that is compressed
    refused(load_packed, rewrite(parts, kinds=(0, 14, 8, 8)), told='another kind')  # LZMA: as much memory as it says
    refused(load_packed, rewrite(parts, PARTS[::-1], (8, 8, 8, 0)), told='another kind')
    refused(unpack, 'bad.nvs', 'run', told='another kind')
    assert not Path('run').exists()


def write(data):
    Path('bad.nvs').write_bytes(data)
    return 'bad.nvs'


def test_bombs_take_no_memory(parts):
    "Files of kilobytes that would be gigabytes: by compression, by their headers, by their configuration"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(load_packed, rewrite(parts | {'weights': bytes(2**25)}), told='unpack to far more')
    data = bytearray(Path(rewrite(parts)).read_bytes())
    for sign, at in ((b'PK\1\2', 24), (b'PK\3\4', 22)):  # the size of the weights, as the two headers have it
        first = data.index(sign)
        second = data.index(sign, first + 4)
        data[second + at:second + at + 4] = (2**32 - 2).to_bytes(4, 'little')
    refused(load_packed, write(bytes(data)), told='unpack to far more')
    head = json.loads(parts['run.json'])
    for change in (dict(hidden=8192, width=4096), dict(d_s=2**20), dict(d_t=2**16)):
        large = {**head, 'config': {**head['config'], 'model': {**head['config']['model'], **change}}}
        refused(load_packed, rewrite(parts | {'run.json': json.dumps(large).encode()}))
    many = [str(i) for i in range(3000)]
    large = {**head, 'clips': {**head['clips'], 'static_names': many, 'transient_names': many}}
    refused(load_packed, rewrite(parts | {'run.json': json.dumps(large).encode()}), told='fewer codes')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize('field', ['format', 'version', 'bits', 'config', 'clips'])
def test_every_field_is_checked(parts, field):
    head = json.loads(parts['run.json'])
    for odd in (None, -1, 9, .5, 10**400, 'x', [], {}, [[None]], dict(x=1)):
        text = json.dumps({**head, field: odd})
        refused(load_packed, rewrite(parts | {'run.json': text.encode()}), told='bad.nvs')
    head.pop(field)
    refused(load_packed, rewrite(parts | {'run.json': json.dumps(head).encode()}), told=field)


def test_numbers_that_do_not_fit(parts):
    for name in ('weights', 'scales', 'rest'):
        for other in (b'', parts[name][:-4], parts[name] + bytes(4)):
            refused(load_packed, rewrite(parts | {name: other}), told='the configuration')
    refused(load_packed, rewrite(parts | {'rest': b'\xff' * len(parts['rest'])}), told='non-finite')
    for text in (b'', b'[', b'\xff', b'[' * 10**5, b'null', b'[]'):
        refused(load_packed, rewrite(parts | {'run.json': text}), told='bad.nvs')


# ---- bytes against dB

def test_films_and_components():
    "More bytes, more dB; every frame comes back in its place"
    real = load_set('chairs', size=32, frames=8).frames[:4]
    film = {crf: codec.video(real, 'x264', crf) for crf in (10, 40)}
    assert film[10][0] > 2 * film[40][0] > 0 and psnr(real, film[10][1]).min() > 30
    assert psnr(real, film[10][1]).mean() > psnr(real, film[40][1]).mean() + 8
    same = np.repeat(real[:1], 4, 0)
    assert codec.video(same, 'x264', 20, every=32)[0] < .9 * codec.video(same, 'x264', 20)[0]
    few, many = codec.pca(real, (1, 31))
    assert few[:1] == (1,) and few[1] < many[1] and psnr(real, many[2]).min() > 35 > psnr(real, few[2]).mean()


def test_bd_rate_known_answers():
    curve = np.array([(1000, 25.), (2000, 28.), (4000, 30.5), (9000, 33.)])
    assert codec.bd_rate(curve, curve) == pytest.approx(0, abs=1e-9)
    assert codec.bd_rate(curve * [.5, 1], curve) == pytest.approx(-50)
    assert codec.bd_rate(curve[::-1] * [3, 1], curve.tolist()) == pytest.approx(200)
    assert codec.bd_rate(curve + [0, 8.], curve) is None and codec.bd_rate(curve[:1], curve) is None
    line = np.array([(10**(d/10), float(d)) for d in range(20, 40, 5)])  # a straight line, met elsewhere: the same
    assert codec.bd_rate(line, [(10**(d/10), float(d)) for d in (17, 22, 31, 36)]) == pytest.approx(0, abs=1e-9)


def test_results_are_continued(tiny_run, monkeypatch, capsys):
    "What is there is not made again; a run's rows are; other clips are refused"
    monkeypatch.setattr(codec, 'BITS', (8, 4)), monkeypatch.setattr(codec, 'PCA', (2,))
    monkeypatch.setattr(codec, 'VIDEO', {'x264': (*codec.VIDEO['x264'][:3], (30,))})
    codec.main(['chairs', '--run', str(tiny_run), '--out', 'r/book.json'])
    book = read_json('r/book.json')
    assert [*book['rows']] == ['ours 8 bit', 'ours 4 bit', 'pca 2', 'x264 30'] and book['shape'] == [18, 4, 32, 32, 3]
    assert 0 < book['rows']['ours 8 bit']['codes'] < book['rows']['ours 8 bit']['bytes']
    capsys.readouterr()
    codec.main(['chairs', '--run', str(tiny_run), '--out', 'r/book.json'])
    assert 'x264' not in capsys.readouterr().out and read_json('r/book.json') == book
    refused(codec.main, ['actors', '--out', 'r/book.json'], told='other clips')
