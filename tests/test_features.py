"The VGG16 features: the network, weights that cannot be trusted, and the motion of a clip."
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nvs_nb.core import NvsError, explain
from nvs_nb.data.clips import load_set
from nvs_nb.evaluation import metrics
from nvs_nb.evaluation.metrics import (LOOKS, VGG_SHA256, VGGFeatures, clips_of, feature_net, find_vgg, motion,
                                       read_vgg, real_motion, untrained_vgg, vgg_features)


@pytest.fixture(scope='module')
def real(): return load_set('chairs').frames[:3, :5, ::2, ::2]


@pytest.fixture(scope='module')
def weights(): return {k: v.numpy() for k, v in VGGFeatures(seed=1).state_dict().items()}


@pytest.fixture(scope='module')
def npz(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp('vgg')/'small.npz'
    np.savez(path, **weights, extra=np.zeros(3))
    return path


@pytest.fixture(scope='module')
def net(npz): return read_vgg(npz)


@pytest.fixture(autouse=True)
def no_vgg_in_the_environment(monkeypatch): monkeypatch.delenv('NVS_VGG16', raising=False)


# the network and its files

def test_import_builds_nothing_and_draws_nothing():
    code = '''
import torch
built, make = [], torch.nn.Module.__init__
torch.nn.Module.__init__ = lambda self, *a, **k: (built.append(type(self).__name__), make(self, *a, **k))[1]
import nvs_nb.training.checkpoint
before, n = torch.get_rng_state(), len(built)
import nvs_nb.evaluation.report as r, nvs_nb.evaluation.metrics as m
assert torch.equal(torch.get_rng_state(), before), 'the global generator has moved'
assert len(built) == n, built[n:]
assert not [k for k, v in vars(m).items() if isinstance(v, (torch.nn.Module, torch.Tensor))]
m.untrained_vgg(), m.VGGFeatures(3)
assert torch.equal(torch.get_rng_state(), before), 'building a network has moved the global generator'
'''
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_random_weights_follow_the_seed():
    a, b, c = VGGFeatures(), untrained_vgg(), untrained_vgg(seed=2)
    same = lambda x, y: all(torch.equal(p, q) for p, q in zip(x.parameters(), y.parameters()))
    assert same(a, b) and not same(a, c) and c.source['weights_seed'] == 2 and 'sha256' not in a.source
    layers = [m for m in a.features if isinstance(m, torch.nn.Conv2d)]
    for layer in layers: assert layer.weight.std().item() == pytest.approx((2 / layer.weight[0].numel())**.5, rel=.1)
    assert not any(p.requires_grad for p in a.parameters()) and not a.training
    assert same(feature_net(), a)


def test_features_are_vgg16_up_to_relu3_3(real, weights, net):
    x = torch.from_numpy(real[0, :2]).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor([.485, .456, .406]).view(3, 1, 1)) / torch.tensor([.229, .224, .225]).view(3, 1, 1)
    for n in (0, 2, 'pool', 5, 7, 'pool', 10, 12, 14):
        if n == 'pool': x = F.max_pool2d(x, 2)
        else:
            weight, bias = (torch.from_numpy(weights[f'features.{n}.{k}']) for k in ('weight', 'bias'))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
    assert x.shape == (2, 256, 8, 8)
    torch.testing.assert_close(vgg_features(real[0, :2], net), x.flatten(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vgg_features(real, net, batch=4)[0, :2], x.flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [np.float16, np.float64])
def test_other_float_types_are_read(dtype, weights, tmp_path):
    np.savez(tmp_path/'v.npz', **{k: v.astype(dtype) for k, v in weights.items()})
    assert next(read_vgg(tmp_path/'v.npz').parameters()).dtype == torch.float32


class Bomb:
    "Something that must never be unpickled."
    def __reduce__(self): return (exec, ('raise SystemExit("unpickled")',))


def test_weights_that_cannot_be_trusted(weights, tmp_path):
    def fails(change, match):
        np.savez(tmp_path/'bad.npz', **(weights | change))
        with pytest.raises(NvsError, match=match) as e: read_vgg(tmp_path/'bad.npz')
        assert 'bad.npz' in str(e.value) and '\n' not in str(e.value)
    fails({'features.0.weight': np.array([Bomb()], dtype=object)}, 'not an .npz')
    fails({'features.14.bias': np.zeros(255, np.float32)}, r'features.14.bias has shape \(255,\), expected \(256,\)')
    fails({'features.7.bias': np.zeros(128, np.int64)}, 'features.7.bias is not made of finite floats')
    fails({'features.7.bias': np.full(128, np.inf)}, 'finite')
    missing = {k: v for k, v in weights.items() if k != 'features.10.weight'}
    np.savez(tmp_path/'bad.npz', **missing)
    with pytest.raises(NvsError, match='no array features.10.weight'): read_vgg(tmp_path/'bad.npz')


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 nonsense', b'\x93NUMPY', pickle.dumps(Bomb()), 'half', 'npy'])
def test_files_that_are_no_npz(content, npz, tmp_path):
    path = tmp_path/'x.npz'
    if content == 'npy':
        with open(path, 'wb') as f: np.save(f, np.zeros(3))
    else: path.write_bytes(npz.read_bytes()[:3_000_000] if content == 'half' else content)
    with pytest.raises(NvsError, match='x.npz: not an .npz'): read_vgg(path)


def no_memory(*args, **kw): raise MemoryError


def test_too_little_memory_is_not_called_damage(npz, real, net, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(np, 'load', no_memory)
        with pytest.raises(MemoryError) as e: read_vgg(npz)
    assert 'not enough memory' in explain(e.value)
    monkeypatch.setattr(torch, 'load', no_memory)
    with pytest.raises(MemoryError): real_motion(load_set('chairs').subset(slice(3)), real, net, tmp_path)


def test_a_file_that_is_named_must_be_there(npz, tmp_path, monkeypatch):
    for path in (tmp_path/'none.npz', tmp_path):
        with pytest.raises(NvsError, match='cannot be read'): find_vgg(path)
    monkeypatch.setenv('NVS_VGG16', str(tmp_path/'gone.npz'))
    with pytest.raises(NvsError, match='gone.npz'): find_vgg()
    assert find_vgg(npz)[0].source['file'] == 'small.npz'  # the argument comes before the variable
    monkeypatch.setenv('NVS_VGG16', str(npz))
    assert len(find_vgg(download=False)[0].source['sha256']) == 16
    assert feature_net(npz).source['file'] == 'small.npz'


def test_without_a_file_the_network_is_asked(weights, monkeypatch, tmp_path):
    calls, path = [], tmp_path/'hub/checkpoints/vgg16-397923af.pth'
    def offline(url, path, sha256, **kw): calls.append((url, path, sha256)); raise NvsError(f'{url}: no route to host')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path/'hub'))
    monkeypatch.setattr(metrics, 'fetch', offline)
    assert find_vgg(download=False)[0] is None and not calls
    net, why = find_vgg()
    assert net is None and 'NVS_VGG16' in why and 'no route to host' in why and '\n' not in why
    assert calls == [('https://download.pytorch.org/models/vgg16-397923af.pth', path, VGG_SHA256)]
    assert len(VGG_SHA256) == 64 and VGG_SHA256.startswith('397923af')
    with pytest.raises(NvsError, match='no route to host'): find_vgg('download', download=False)
    path.parent.mkdir(parents=True)
    torch.save({k: torch.from_numpy(v) for k, v in weights.items()} | {'classifier.0.bias': torch.zeros(9)}, path)
    monkeypatch.setattr(metrics, 'fetch', lambda url, path, sha256, **kw: path)
    monkeypatch.setenv('NVS_VGG16', 'gone.npz')  # the word comes before the variable
    assert find_vgg('download', download=False)[0].source['sha256'] == VGG_SHA256[:16]
    monkeypatch.delenv('NVS_VGG16')
    net, why = find_vgg()
    assert why == '' and torch.equal(net.features[14].bias, torch.from_numpy(weights['features.14.bias']))
    assert net.source['file'] == 'vgg16-397923af.pth'


def test_weights_with_another_checksum_are_refused(monkeypatch, tmp_path):
    "The file in torch's cache is not the one that was published, and there is no network to fetch it again"
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(metrics, 'VGG_URL', 'http://127.0.0.1:9/vgg16-397923af.pth')
    (tmp_path/'checkpoints').mkdir()
    torch.save({}, tmp_path/'checkpoints/vgg16-397923af.pth')
    net, why = find_vgg()
    assert net is None and '127.0.0.1' in why and '\n' not in why


# motion

def test_motion_by_hand(real, net):
    phi = vgg_features(real, net).double()
    steps = [[phi[n, i+1] - phi[n, i] for i in range(4)] for n in range(3)]
    for mode, of in (('signed', lambda d: d), ('absolute', torch.abs)):
        expected = torch.stack([sum(of(d) for d in clip) / 4 for clip in steps])
        torch.testing.assert_close(motion(real, net)[mode].double(), expected, rtol=1e-4, atol=1e-5)


def test_looks_are_pooled_features_of_four_frames(real, net):
    looks = motion(real, net, looks=True)['looks']
    phi = vgg_features(real[:, [0, 1, 3, 4]], net).view(3, LOOKS, 256, 8, 8)
    torch.testing.assert_close(looks, F.avg_pool2d(phi.flatten(0, 1), 2).reshape(3, LOOKS, -1), rtol=1e-4, atol=1e-5)


def test_what_does_not_move_has_no_motion(real, net):
    still = motion(np.repeat(real[:, :1], 5, axis=1), net)
    assert {k: v.abs().max().item() for k, v in still.items()} == {'absolute': 0, 'signed': 0}


def test_signed_motion_telescopes_and_absolute_does_not(real, net):
    inner = real[:, [0, 3, 1, 2, 4]]
    a, b = motion(real, net), motion(inner, net)
    torch.testing.assert_close(a['signed'], b['signed'], rtol=1e-4, atol=1e-4)
    assert (a['absolute'] - b['absolute']).abs().max() > 1e-2
    torch.testing.assert_close(a['absolute'], motion(real[:, ::-1], net)['absolute'], rtol=1e-4, atol=1e-4)


def test_motion_of_real_clips_is_computed_once(real, net, tmp_path, monkeypatch):
    clips = load_set('chairs').subset(slice(3))
    first, looks = real_motion(clips, real, net, tmp_path), real_motion(clips, real, net, tmp_path, looks=True)
    assert len([*tmp_path.iterdir()]) == 2 and 'looks' in looks and 'looks' not in first
    with monkeypatch.context() as m:
        m.setattr(metrics, 'motion', None)
        again = real_motion(clips, real, net, tmp_path)
    assert all(torch.equal(first[k], again[k]) for k in first)
    for path in tmp_path.iterdir(): path.write_bytes(path.read_bytes()[:1000])  # damaged: computed again
    assert torch.equal(real_motion(clips, real, net, tmp_path)['signed'], first['signed'])


# the gate

def test_clips_may_be_tensors_and_memory_maps(real, tmp_path):
    np.save(tmp_path/'x.npy', real)
    mapped = np.load(tmp_path/'x.npy', mmap_mode='r')
    a, b = clips_of(torch.from_numpy(real), mapped, same=True)
    assert (a == real).all() and (b == real).all()


@pytest.mark.parametrize('of', [lambda c: c/255., lambda c: c[0], lambda c: c[:0], lambda c: c[:, :1],
                                lambda c: c.transpose(0, 1, 4, 2, 3)])
def test_what_is_no_clip(of, real, net):
    with pytest.raises(NvsError, match='must be uint8') as e: motion(of(real), net)
    assert '\n' not in str(e.value)
    with pytest.raises(NvsError, match='one shape'): clips_of(real, real[:2], same=True)
