"Every public function says in one line which argument is wrong: no error from the depth, no wrong result in silence."
import importlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nvs_nb.config import make_config
from nvs_nb.core import (NvsError, finite, in_range, indices, instance, make_rng, one_of, power_of_two, shaped, shown,
                         whole)
from nvs_nb.data.clips import load_set
from nvs_nb.data.frames import Window
from nvs_nb.evaluation.metrics import motion, untrained_vgg
from nvs_nb.evaluation.perceptual import LPIPS
from nvs_nb.models.build import build_model
from nvs_nb.models.encode import learnt_codes
from nvs_nb.models.nvs import NVS
from nvs_nb.models.prior import clip_codes
from nvs_nb.paper.baselines import stored
from nvs_nb.paper.exchange import cell_kinds, complete, looks
from nvs_nb.paper.interpolation import weights
from nvs_nb.training.checkpoint import describe_clips, open_run, save_checkpoint
from nvs_nb.training.pack import pack, quantise, to_bytes
from nvs_nb.training.trainer import Trainer
from nvs_nb.viz import new_figure

NAN, HUGE = float('nan'), 10**400
WRONG = dict(  # kind of argument: wrong values, given a right one
    whole=lambda v: [-1, 1.5, True, 'x', None, NAN, HUGE, [1]],
    count=lambda v: [0, -1, 1.5, True, 'x', None, NAN, HUGE, [1]],
    number=lambda v: [-1., NAN, np.inf, True, 'x', None, [1.]],
    flag=lambda v: ['x', None, 2],
    choice=lambda v: ['nonsense', 3, None, ['a']],
    text=lambda v: [3, None, ['a']],
    path=lambda v: [3, None, ['a']],
    thing=lambda v: [None, 3, 'x', object(), []],
    names=lambda v: [3, 'x', v[:1]],
    items=lambda v: [3, None, object()],
    error=lambda v: [-1., 'x', None, ['a']],
    phases=lambda v: [None, 'x', [], [[.1]], [NAN], ['a']],
    frames=lambda v: [None, 'x', 3, v[:0], v / 255., v.astype(int), v[..., :2], v[..., 0]],
    clips=lambda v: WRONG['frames'](v) + [v[0, 0], v[None]],
    alike=lambda v: WRONG['clips'](v) + [v[:1], v[:, :2], v[:, :, 2:]],
    array=lambda v: [None, 'x', 3, v[:0], v.astype(str), v * NAN],
    tensor=lambda v: [None, 'x', 3, v[:0], v.long(), v.byte(), v.numpy(), v.tolist()],
    ranked=lambda v: WRONG['tensor'](v) + [v[0], v[None]],
    ids=lambda v: [None, 'x', 3, [], [-1, 0], [0, 10**6], [1.5, 0], [[0, 1]], [True, False], [0, 1, 0]],
    times=lambda v: [None, 'x', [], [[.1]], [NAN], ['a'], [-1.], [99.]])


def given(function, /, **kinds):
    "A function of the table: argument = (right value, kind of its wrong ones), or a value that is just passed on."
    return {k: v if type(v) is tuple and len(v) == 2 and v[1] in [*WRONG, *(f'{x}?' for x in WRONG)] else (v, None)
            for k, v in kinds.items()}, function


class Features(nn.Module):
    "Called as the I3D of FVD"
    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return torch.stack([x.mean((1, 2, 3, 4)), x.std((1, 2, 3, 4))], 1)


@cache
def some():
    "What the calls work on."
    o, rng = SimpleNamespace(), np.random.default_rng(0)
    o.real, o.fake = rng.integers(0, 256, (2, 3, 4, 16, 16, 3)).astype(np.uint8)
    small = dict(size=32, frames=8, width=16, hidden=8, d_s=4, d_t=3, levels=3, batch=4, epochs=1, threads=1)
    o.c, o.actors = make_config('actors', **small), load_set('actors', size=32, frames=8)
    o.clips = o.actors.with_ids('clip', 'clip')
    o.few = o.clips.subset([0, 1])
    o.model = NVS(o.c, len(o.clips), len(o.clips))
    o.matrix = NVS(make_config('actors', static_ids='dataset', transient_ids='dataset', **small), 6, 6)
    o.gans = {m: make_config('chairs', model=m, size=32, frames=8, width=16, d_width=4) for m in ('vgan', 'tgan',
          'mocogan')}
    o.gans['videovae'] = make_config('chairs', model='videovae', size=32, frames=8, width=16, e_width=4, hidden=8)
    o.vgg = untrained_vgg()
    o.f, o.g = (motion(x, o.vgg, looks=True) for x in (o.real, o.fake))
    o.scores = dict.fromkeys([f'{c}psnr_{k}' for c in ('', 'baseline_') for k in ('mean', 'worst', 'moving')], 1.)
    o.scores |= dict(psnr_clips=[1.])
    o.x, o.y = torch.rand(2, 2, 4, 3, 16, 16) * 2 - 1
    o.path, o.about = torch.randn(2, 6, 5), describe_clips(o.clips)
    return o


def viz(o, tmp):
    play = dict(fps=(12, 'number'), scale=(1, 'count'))
    files = [given(f'save_{s}', path=(tmp/f'a.{s}', 'path'), clip=(o.real[0], 'frames'), **play) for s in ('gif',
          'webp', 'mp4')]
    return [*files, *(given(f, clip=(o.real[0], 'frames'), **play) for f in ('gif_bytes', 'webp_bytes', 'mp4_bytes')),
        given('animate', clip=(o.real[0], 'frames'), **play, alt=('a clip', 'text?'), width=(90, 'count?')),
        given('figure_pixels', fig=(new_figure()[0], 'thing')),
        given('save_strip', path=(tmp/'a.png', 'path'), clip=(o.real[0], 'frames'), every=(1, 'count')),
        given('png_bytes', clip=(o.real[0], 'frames'), every=(1, 'count')),
        given('new_figure', rows=(1, 'count'), cols=(2, 'count'), width=(5., 'number'), height=(2., 'number')),
        given('tint', color=('blue', 'choice'), amount=(.5, 'number')), given('check_clip', clip=(o.real[0], 'frames')),
        given('grid', clips=(o.real, 'clips'), cols=(2, 'count?'), pad=(1, 'whole')),
        given('strip', clip=(o.real[0], 'frames'), every=(2, 'count'), pad=(1, 'whole')),
        given('html_picture', clip=(o.real[0], 'clips'), alt=('a', 'text'), **play),
        given('controls', draw=(str, 'thing')),
        given('marked', pictures=(o.real, 'clips'), row=(0, 'whole'), column=(0, 'whole'), unseen=None),
        given('matrix_controls', films=(o.real[None], 'array'), rows=(['a'], 'items'), columns=(list('abc'), 'items')),
        given('show_strips', clips=(o.real, 'frames'), titles=(['a', 'b', 'c'], 'names'), every=(2, 'count'),
              width=(5., 'number')), given('bigger', clip=(o.real[0], 'frames'), scale=(2, 'count')),
        given('side_by_side', real=(o.real, 'alike'), fake=o.fake, every=(2, 'count'), gain=(4, 'number')),
        given('plot_curves', metrics=([dict(step=1, loss=1.)], 'text'), keys=(('loss',), 'thing'), x=('step', 'choice'),
              height=(2., 'number')), given('plane', codes=(np.random.rand(5, 3), 'array')),
        given('plot_paths', codes=(np.random.rand(2, 5, 3), 'array'), labels=(['a', 'b'], 'names'))]


def models_latents(o, tmp):
    sizes = dict(S=(2, 'count'), T=(3, 'count'), L=(4, 'count'), d_s=(5, 'count'), d_t=(6, 'count'))
    return [given('LatentDictionary', **sizes, init=('path', 'choice'), rng=(None, 'thing?'), sparse=(False, 'flag')),
        given('random_path', T=(2, 'count'), L=(4, 'count'), d=(3, 'count')),
        given('project_ball', z=(o.path, 'tensor')),
        given('project_rank', z=(o.path, 'tensor'), rho=(2, 'whole'))]


def models_losses(o, tmp):
    k, kind = torch.tensor([0, 3]), dict(kind=('l1', 'choice'), levels=(2, 'whole'))
    return [given('laplacian_pyramid', x=(o.x, 'tensor'), levels=(2, 'whole')), given('pyramid_matrices', n=16),
        given('reconstruction', fake=(o.x, 'ranked'), real=o.y, **kind),
        given('static_loss', fake=(o.x, 'ranked'), real=(o.y, 'ranked'), k=(k, 'thing'), **kind),
        given('neighbours', L=(6, 'count'), near=(2., 'number'), device='cpu'),
        given('squared_distances', r=(o.path, 'ranked')),
        given('triplet_loss', r=(o.path, 'ranked'), alpha=(2., 'number'))]


def models_nvs(o, tmp):
    return [given('Recurrent', d_t=(3, 'count'), hidden=(4, 'count'), recurrent=(True, 'flag')),
        given('Generator', d=(4, 'count'), size=(8, 'count'), width=(12, 'count'), norm=('group', 'choice'),
              act=('relu', 'choice'), init=('fan', 'choice'), output=('tanh', 'choice'), labels=(2, 'whole'),
              rng=(None, 'thing?'), style=(2, 'whole'), dropout=(.1, 'number')),
        given('init_generator', net=(nn.Linear(2, 2), 'thing'), how=('fan', 'choice'), rng=(None, 'thing?')),
        given('Phase', train=(('G',), 'thing'), repeat=(1, 'count')),
        given('NVS', c=(o.c, 'thing'), S=(2, 'count'), T=2),
        given('generate', model=(o.model, 'thing'), static_id=([0, 1], 'ids'), transient_id=([0, 1], 'ids'),
              batch=(2, 'count'))]


def models_build(o, tmp):
    return [given('triplet_released', r=(o.path, 'ranked'), margin=(2., 'number')),
        given('build_model', c=(o.c, 'thing'), S=(1, 'count'), T=(2, 'count')),
        given('Released', c=(make_config('actors', 'released', size=32), 'thing'), S=(1, 'count'), T=(1, 'count'))]


def models_gan(o, tmp):
    vae = build_model(o.gans['videovae'])
    return [given('doublings', size=(32, 'count')), given('Noise', sigma=(.1, 'number')),
        given('VideoGenerator', d=(4, 'count'), size=(16, 'count'), width=(16, 'count'), out=(3, 'count')),
        given('discriminator', size=(16, 'count'), width=(4, 'count'), flat=(False, 'flag'), noise=(.1, 'number')),
        given('init_small', net=(nn.Linear(2, 2), 'thing')),
        given('new_clips', model=(vae, 'thing'), n=(2, 'count'), real=(o.clips.frames, 'clips'), seed=(0, 'whole'),
              batch=(2, 'count'))]


def models_vgan(o, tmp):
    return [given('VGAN', c=(o.gans['vgan'], 'thing')),
        given('TwoStreams', d=(4, 'count'), size=(16, 'count'), width=16)]


def models_tgan(o, tmp):
    return [given('TGAN', c=(o.gans['tgan'], 'thing')), given('clip_singular_values', net=(nn.Linear(2, 2), 'thing')),
        given('TemporalGenerator', d=(4, 'count'), d_out=(3, 'count'), size=(16, 'count'), width=(16, 'count'))]


def models_mocogan(o, tmp):
    return [given('MoCoGAN', c=(o.gans['mocogan'], 'thing')),
            given('ContentAndMotion', d_s=(4, 'count'), d_t=(3, 'count'), size=(16, 'count'), width=(16, 'count'))]


def models_videovae(o, tmp):
    return [given('VideoVAE', c=(o.gans['videovae'], 'thing')), given('split', x=(torch.rand(2, 4), 'tensor')),
            given('frame_encoder', size=(16, 'count'), width=(4, 'count'), out=(8, 'count'))]


def evaluation_metrics(o, tmp):
    both, f = dict(real=(o.real, 'alike'), fake=o.fake), torch.rand(3, 4)
    return [*(given(name, **both) for name in ('psnr', 'psnr_moving', 'ssim', 'pixel_scores')),
        *(given(name, real=(o.real, 'clips')) for name in ('mean_frame', 'frozen')),
        given('shuffled', real=(o.real, 'clips'), seed=(0, 'whole')),
        given('shifted', real=o.real, pixels=(1, 'count')),
        given('blurred', real=(o.real, 'clips'), sigma=(1., 'number')), given('decibel', mse=(.1, 'error')),
        given('moving_mask', real=(o.real, 'clips'), threshold=(.05, 'number')),
        given('VGGFeatures', seed=(0, 'whole')), given('window_mean', x=(torch.rand(1, 11, 12, 3), 'tensor')),
        given('frame_ssim', p=(o.real[0], 'frames'), q=o.fake[0]), given('bytes_of', x=(f, 'ranked')),
        given('pca_frames', real=(o.real, 'clips'), nbytes=(10**6, 'count')),
        given('pca_scores', real=(o.real, 'clips'), nbytes=(10**6, 'count')),
        given('fcs', clips=(o.real, 'clips'), count_first=(True, 'flag'), consecutive=(False, 'flag')),
        given('find_vgg', path=(None, 'thing?'), download=(False, 'flag')), given('numbers', scores=({}, 'thing')),
        given('vgg_features', frames=(o.real[0], 'frames'), net=(o.vgg, 'thing'), batch=(4, 'count')),
        given('motion', clips=(o.real, 'clips'), net=(o.vgg, 'thing')),
        given('log_distance', f=(f, 'ranked'), g=f + 1),
        given('mcs_floor', f=(f, 'ranked'), seed=(0, 'whole'), draws=2),
        given('mcs', real=(o.real, 'clips'), fake=o.fake, net=(o.vgg, 'thing'), mode=('signed', 'choice')),
        given('mcs_scores', f=(o.f, 'thing'), g=(o.g, 'thing')), given('controls', real=(o.real[:, :2], 'clips')),
        given('score', **both, vgg=(o.vgg, 'thing?'), seed=(0, 'whole'), f_real=o.f)]


def evaluation_perceptual(o, tmp):
    torch.jit.script(Features()).save(tmp/'i3d.pt')
    net, video, f, d = LPIPS('vgg'), torch.jit.load(tmp/'i3d.pt'), np.random.rand(6, 4), torch.rand(6, 6)
    clips, pair = dict(clips=(o.real, 'clips')), dict(real=(o.real, 'alike'), fake=o.fake)
    three, draws = dict(net=(net, 'thing')), dict(draws=(9, 'count'), seed=(0, 'whole'))
    sets = dict(real=(f, 'array'), fake=(f + 1, 'array'))
    return [given('LPIPS', net=('alex', 'choice'), seed=(0, 'whole')), given('find_lpips', net=('alex', 'choice')),
        given('read_i3d', path=(tmp/'i3d.pt', 'path')), given('lpips', **pair, batch=(4, 'count'), **three),
        given('lpips_pairs', **clips, pairs=(2, 'count'), seed=(0, 'whole'), **three), given('ms_ssim', **pair),
        given('clip_features', **clips, batch=(4, 'count'), **three), given('prdc', **sets, k=(2, 'count'), **draws),
        given('prdc_of', own=(d, 'ranked'), to=(d, 'ranked'), among=(d, 'ranked'), k=(2, 'count'), **draws),
        given('kvd', **sets, **draws), given('frechet', f=(f, 'array'), g=(f, 'array')),
        given('set_scores', own=d, to=(d, 'ranked'), among=d, f=(f, 'array'), g=(f, 'array')),
        given('optical_flow', **clips, pairs=(1, 'count')),
        given('fvd', real=(o.real, 'clips'), fake=o.fake, net=(video, 'thing')),
        given('warping_error', **clips, flow=(None, 'thing?'), pairs=(1, 'count')),
        given('i3d_features', **clips, net=(video, 'thing'), batch=(4, 'count')),
        given('perceptual_scores', **pair, net=(None, 'thing?'), why=('', 'text')),
        given('noisy', real=(o.real, 'clips'), seed=(0, 'whole'), sigma=(1., 'number')),
        given('perceptual_controls', real=(o.real, 'clips'), nets=([], 'items'))]


def evaluation_samples(o, tmp):
    draw = dict(model=(o.model, 'thing'), about=(o.about, 'thing'), n=(1, 'count'), seed=(0, 'whole'))
    return [given('distances', a=(o.f['looks'], 'ranked'), b=o.g['looks']), given('sharpness', clips=(o.real, 'clips')),
        given('nearest', d=(torch.rand(4, 3, 3), 'ranked')), given('kinds_of', config=(o.c, 'thing'), about=o.about),
        given('evaluate_samples', real=(o.real, 'clips'), fake=o.fake, vgg=(o.vgg, 'thing'), f_real=(o.f, 'thing?')),
        given('our_clips', **draw, kind=('mixed', 'choice')),
        given('draw_samples', **draw, config=(o.c, 'thing'), kind=('exchanged', 'choice'), real=o.clips.frames)]


def evaluation_report(o, tmp):
    return [given('ranks', psnr_clips=([1., 2.], 'text')),
        given('evenly', psnr_clips=([1., 2.], 'text'), n=(1, 'count')),
        given('score_all', model=(o.model, 'thing'), config=(o.c, 'thing'), clips=(o.few, 'thing')),
        given('read_scores', run=(tmp, 'path')), given('verdict', s=(o.scores, 'thing')),
        given('key_numbers', s=(o.scores, 'thing')),
        given('mosaic', real=(o.real, 'alike'), fake=o.fake, psnr_clips=[1, 2, 3])]


def evaluation_tables(o, tmp):
    return [given('film_bytes', clip=(o.real[0], 'frames')), given('words_of', text=('PSNR', 'text')),
        given('write_pages', out=(tmp/'page', 'path'), title=('t', 'text'), intro=([], 'items'), sections=([], 'items'),
              minute=(None, 'thing?'))]


def evaluation_explore(o, tmp):
    save_checkpoint(tmp/'checkpoint.pt', o.model.state_dict(), o.c, o.about)
    return [given('sheet', clips=(o.real, 'clips')), given('page_data', run=(open_run(tmp), 'thing'),
        clips=(o.clips, 'thing?'), most=(2, 'count'), title=('x', 'text'))]


def training_sampler(o, tmp):
    return [given('epoch_order', n=5, seed=0, epoch=0), given('steps_per_epoch', c=(o.c, 'thing'), n=(5, 'count')),
        given('unseen_frames', c=(o.c, 'thing'), clips=(o.clips, 'thing')),
        given('draw', c=(o.c, 'thing'), clips=(o.clips, 'thing'), unseen=(np.zeros((36, 8), bool), 'array'), step=0)]


def training_trainer(o, tmp):
    every = dict(save_every=(60., 'number'), sample_every=(60., 'number'))
    return [given('Metrics', every=(10, 'count')), given('Samples', every=(60., 'number')),
        given('Checkpoints', every=(60., 'number')), given('Trainer', config=(o.c, 'thing'), clips=(o.clips, 'thing'),
            run=(None, 'text?'), device=('cpu', 'choice'), progress=False, callbacks=((), 'items'),
            log_every=(10, 'count'), **every)]


def models_prior(o, tmp):
    ids, y, rng = dict(static_id=([0, 1], 'ids'), transient_id=([0, 1], 'ids')), (o.path[0], 'ranked'), make_rng(0)
    z_s, r = clip_codes(o.model, [0, 1], [0, 1])
    return [given('clip_codes', model=(o.model, 'thing'), **ids), given('variances', y=y),
        given('gaussian', y=y, rng=rng), given('show_codes', model=(o.model, 'thing'), z_s=(z_s, 'ranked'), r=(r, 'ranked'), **ids, batch=(2, 'count')),
        given('mixture', y=y, rng=rng, width=(.5, 'number')), given('minimise', net=(net := nn.Linear(2, 2), 'thing'),
              loss=lambda step: net.weight.sum(), steps=(1, 'count'), lr=(.1, 'number')),
        given('perceptron', a=(2, 'count'), b=(2, 'count'), rng=(rng, 'thing'), width=(4, 'count')),
        given('imle', y=y, rng=rng, steps=(1, 'count'), noise=(2, 'count'), epsilon=(.5, 'number')),
        given('flow', y=y, rng=rng, steps=(1, 'count'), euler=(2, 'count')),
        given('Prior', model=(o.model, 'thing'), **ids, kind=('mixture', 'choice'), seed=(0, 'whole'),
              keep=(.99, 'number')),
        given('nearest_clip', new=(o.fake, 'clips'), old=(o.real, 'clips'), side=(8, 'count'))]


def bench_priors(o, tmp):
    return [given('held_out', names=o.about['names'], held=(3, 'whole'), seed=(0, 'whole'))]


def bench_large(o, tmp):
    return [given('halved', frames=(o.real, 'clips'), size=(8, 'count')),
        given('judged', real=(o.real, 'alike'), fake=o.fake, parameters=(10**6, 'count'))]


def models_encode(o, tmp):
    ids, some = dict(static_id=([0, 1], 'ids'), transient_id=([0, 1], 'ids')), (o.clips.frames[:2], 'clips')
    model, codes = dict(model=(o.model, 'thing')), (learnt_codes(o.model, [2, 3], [2, 3]), 'thing')
    start = dict(batch=(2, 'count'), seed=(0, 'whole'), seen=(np.ones((8, 32, 32), bool), 'array?'))
    return [given('learnt_codes', **model, **ids), given('draw_codes', **model, codes=codes, batch=(2, 'count')),
        given('shrunk_gaussian', x=(o.path[0], 'ranked'), most=(9, 'count')),
        given('coarse', frames=some, seen=None, n=(16, 'count')), given('seen_without', hide=('left', 'choice'),
              L=(4, 'count'), size=(8, 'count')),
        given('encode', **model, frames=some, **ids, **start, steps=(1, 'count'), starts=(1, 'count'),
              draws=(0, 'whole'), weight=(.1, 'number'), lr=(.1, 'number')),
        given('tune', **model, frames=some, codes=codes, **ids, **start, steps=(1, 'count?'), replay=(1, 'whole'),
              lr_k=(.1, 'number'), lr=(.1, 'number')),
        given('with_clips', **model, about=(o.about, 'thing'), codes=codes, names=(['a', 'b'], 'names'))]


def bench_encode(o, tmp):
    save_checkpoint(tmp/'run/checkpoint.pt', o.model.state_dict(), o.c, o.about)
    run = dict(opened=(open_run(tmp/'run'), 'thing'))
    clips = replace(o.few, names=['a', 'b'])
    return [given('unseen_clips', opened=run['opened'], dataset=('swings', 'choice')),
        given('nearest', real=(o.real, 'clips'), others=(o.fake, 'clips')),
        given('scores', real=(o.real, 'alike'), fake=o.fake), given('encode_clips', **run, clips=(clips, 'thing'),
              known=(None, 'thing?'), tuned=(False, 'flag'), steps=(1, 'count'), starts=(1, 'count'))]


def training_checkpoint(o, tmp):
    save_checkpoint(tmp/'run/checkpoint.pt', o.model.state_dict(), o.c, o.about)
    return [*(given(f, run=(tmp/'run', 'path'), device=('cpu', 'choice')) for f in ('load_run', 'open_run')),
        given('find_run', run=(tmp/'run', 'path')), given('load_checkpoint', path=(tmp/'run/checkpoint.pt', 'path')),
        given('read_metrics', run=(tmp, 'path')), given('describe_clips', clips=(o.clips, 'thing')),
        given('told_clips', clips=(o.clips, 'thing')), given('left_out', run=(tmp, 'path')),
        given('save_checkpoint', path=(tmp/'x.pt', 'path'), weights=({}, 'thing'), config=(o.c, 'thing'),
              about=(o.about, 'thing'))]


def training_pack(o, tmp):
    save_checkpoint(tmp/'run/checkpoint.pt', o.model.state_dict(), o.c, o.about)
    pack(tmp/'run', tmp/'good.nvs')
    weights, scales, rest = to_bytes(x := nn.Linear(3, 2))
    model, bits = dict(model=(x, 'thing')), dict(bits=(4, 'count'))
    q, scale = quantise(torch.randn(2, 3), 8, 2)
    return [given('quantise', x=(o.path, 'tensor'), **bits, block=(2, 'whole')), given('large', **model),
        given('dequantise', q=(q, 'thing'), scale=(scale, 'tensor'), block=(2, 'whole')), given('bits_known', **bits),
        *(given(name, **model, **bits) for name in ('to_bytes', 'packed_size', 'quantised')),
        given('from_bytes', **model, bits=(8, 'count'), weights=(weights, 'thing'), scales=(scales, 'thing'),
              rest=(rest, 'thing')),
        given('pack', run=(tmp/'run', 'path'), out=(tmp/'x.nvs', 'path'), **bits),
        given('load_packed', file=(tmp/'good.nvs', 'path')),
        given('unpack', file=(tmp/'good.nvs', 'path'), run=(tmp/'y', 'path'))]


def bench_codec(o, tmp):
    curve = [(1., 2.), (3., 4.)]
    return [given('video', clips=(o.real, 'clips'), codec=('x264', 'choice'), crf=(30, 'whole'), every=(4, 'count?')),
        given('frontier', points=(curve, 'text')), given('bd_rate', points=(curve, 'text'), reference=(curve, 'text'))]


def paper_interpolation(o, tmp):
    ids, W = dict(static_id=([0, 1], 'ids'), transient_id=([0, 1], 'ids')), weights([.5], 4)
    return [given('weights', times=([.5, 1], 'times'), L=(6, 'count'), kind=('linear', 'choice'), knots=[0, 2, 4]),
        given('mix', model=(o.model, 'thing'), **ids, W=(weights([.5], 8), 'text'), codes=('r', 'choice')),
        given('between', model=(o.model, 'thing'), **ids, times=([.5], 'times'), kind=('cubic', 'choice'),
              codes=('z', 'choice')), given('fade', clips=(o.real, 'clips'), W=W),
        given('cross_fade', clips=(o.real, 'clips'), times=([.5], 'times'), kind=('linear', 'choice')),
        given('code_rank', paths=(o.path, 'ranked'), share=(.99, 'number')),
        given('score_frames', real=(o.real, 'alike'), fake=o.fake, mask=np.ones((3, 16, 16), bool))]


def paper_exchange(o, tmp):
    films, kinds = complete(o.matrix), cell_kinds(o.actors)
    return [given('cells', clips=(o.actors, 'thing')), given('complete', model=(o.matrix, 'thing')),
        given('holes', clips=(o.actors, 'thing'), share=(.2, 'number'), seed=(0, 'whole'), least=(2, 'whole')),
        given('mask_names', mask=({'walk': ['ada']}, 'thing'), clips=(o.actors, 'thing')),
        given('matrix_clip', films=(films, 'frames'), kinds=(kinds, 'thing')),
        given('windows', film=(o.real[0], 'frames'), L=(2, 'count')),
        given('align', film=(o.real[0], 'frames'), clips=(o.fake[:, :2], 'clips')),
        given('recognise', known=(o.real, 'clips'), labels=([0, 1, 1], 'thing'), clips=(o.fake, 'clips'),
              features=looks, ridge=(.05, 'number')),
        given('score_pair', real=(o.real[0], 'frames'), fake=o.fake[0])]


def data_clips(o, tmp):
    window = (Window(2), 'thing')
    return [given('to_float', u8=(o.real, 'frames')), given('to_uint8', x=(o.x, 'tensor')),
        given('refuse_misfits', clips=(o.clips, 'thing')),
        given('load_set', name=('actors', 'choice'), root=(None, 'text?'), size=(32, 'count'), frames=(2, 'count'),
              window=('first', 'choice'), stride=(1, 'count'), seed=(0, 'whole'), fit=('crop', 'choice'),
              tile=(0, 'whole')),
        given('load_actors', size=(32, 'count'), window=window),
        given('load_chairs', size=(32, 'count'), window=window),
        given('load_swings', size=(32, 'count'), window=window, n=(1, 'count')),
        given('choose', clips=(o.actors, 'thing'), keep=('ada_*', 'text'), leave_out=('', 'text')),
        given('load_clips', config=(o.c, 'thing'))]


def data_frames(o, tmp):
    strip = tmp/'strip.png'
    Image.fromarray(np.concatenate(o.real[0], 1)).save(strip)
    clip = dict(name=('x', 'text'), window=(Window(4), 'thing'), size=(8, 'count'), fit=('crop', 'choice'))
    im = dict(im=(Image.new('RGB', (8, 8)), 'thing'), size=(8, 'count'), fit=('crop', 'choice'), ratio=(1., 'number'))
    return [given('square', **im), given('open_rgb', path=(strip, 'path')), given('is_film', path=(strip, 'path')),
            given('read_tiles', path=(strip, 'path'), **clip, down=(False, 'flag'), aspect=(1., 'number'), tile=(0, 'whole')),
            given('follow', frames=(o.real[0], 'frames'), size=(8, 'count'), right=(False, 'flag')),
            given('read_images', files=([strip], 'items'), **{**clip, 'window': (Window(1), 'thing')}),
            given('read_film', path=(strip, 'path'), **{**clip, 'window': (Window(1), 'thing')}),
            given('series', files=([strip], 'items'))]


def data_phases(o, tmp):
    return [given('motion_features', frames=(o.real, 'clips')),
        given('best_starts', x=(o.real.reshape(3, 4, -1) / 255, 'array'), L=(2, 'count')),
        given('warp_path', cost=(np.eye(3, 5), 'array')),
        given('aligned_frames', frames=(o.real, 'clips'), groups=([0, 0, 1], 'thing'), L=(2, 'count'), warp=(True, 'flag'),
              rounds=(1, 'whole'))]


def data_readers(o, tmp):
    (tmp/'a').mkdir()
    for i, f in enumerate(o.real[0]): Image.fromarray(f).save(tmp/f'a/{i}.png')
    return [given('find', root=(tmp, 'path')),
            given('find_sources', reader=('folder', 'choice'), root=(tmp, 'path'), tile=(0, 'whole')),
            given('read_clips', reader=('folder', 'choice'), root=(tmp, 'path'), size=(8, 'count'),
                  window=(Window(4), 'thing'), cache=False, fit=('crop', 'choice'), draw=(0, 'whole'), tile=(0, 'whole'))]


def data_synthetic(o, tmp):
    return [given('actor', identity=(0, 'whole'), action=(0, 'whole'), phases=([.1], 'phases'), size=(32, 'count')),
            given('golfer', seed=(0, 'whole'), frames=(1, 'count'), size=(32, 'count'), shake=(.5, 'number'))]


def config(o, tmp):
    return [given('make_config', dataset=('actors', 'choice'), preset=('fast', 'choice'), model=('nvs', 'choice'))]


def core(o, tmp):
    return [given('atomic_write', path=(tmp/'q', 'path'), write=(lambda p: p.write_text(''), 'thing')),
        given('write_json', path=(tmp/'j', 'path'), obj={}), given('read_json', path=(tmp/'j', 'path')),
        given('pick_device', name=('cpu', 'choice')), given('make_rng', seed=(0, 'whole'))]


def paper_plan(o, tmp):
    return [given('Plan', scale=('demo', 'choice'), roots=({}, 'thing'), sets=(('chairs',), 'text'),
                  seconds=(0., 'number'), changes=({}, 'thing'), only=((), 'items'))]


def paper_baselines(o, tmp):
    folder = Path(__file__).parent.parent/'data/results/short'
    return [given('stored', folder=(folder, 'path')),
            given('stored_table', s=(stored(folder)['chairs'], 'thing'), label=('VGAN', 'choice'))]


MODULES = [viz, models_latents, models_losses, models_nvs, models_build, models_prior, bench_priors, bench_large,
    models_encode, models_gan, models_vgan, models_tgan, models_mocogan, models_videovae, evaluation_metrics,
    evaluation_perceptual, evaluation_samples, evaluation_report, evaluation_tables, evaluation_explore,
    training_sampler, training_trainer, training_checkpoint, training_pack, bench_codec, bench_encode,
    paper_interpolation, paper_exchange, data_clips, data_frames, data_phases, data_readers, data_synthetic, config,
    core, paper_plan, paper_baselines]


def complaint(f, kw):
    "'' if a call ends with an error of ours in one line, else what it did."
    try: f(**kw)
    except NvsError as e: return '' if '\n' not in str(e) and len(str(e)) < 400 else f'long: {e}'
    except Exception as e: return repr(e)
    return 'no error'


@pytest.mark.parametrize('calls', MODULES, ids=lambda f: f.__name__)
def test_wrong_arguments_are_told(calls, tmp_path, monkeypatch):
    monkeypatch.setenv('NVS_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    module, bad = importlib.import_module('nvs_nb.' + calls.__name__.replace('_', '.', 1)), []
    for args, name in calls(some(), tmp_path):
        f, right = getattr(module, name), {k: v for k, (v, _) in args.items()}
        f(**right)
        for k, (value, kind) in args.items():
            if not kind: continue
            for wrong in WRONG[kind.rstrip('?')](value):
                if kind.endswith('?') and wrong is None: continue
                told = complaint(f, {**right, k: wrong})
                if told: bad.append(f'{name}({k}={shown(wrong)}): {told}')
    assert not bad, '\n'.join(bad)
