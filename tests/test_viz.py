"Figures and files of clips: what they hold, and that nothing half-written is left when they cannot be made."
import errno
import io
from pathlib import Path

import av
import imageio.v3 as iio
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from nvs_nb import viz
from nvs_nb.core import NvsError
from nvs_nb.viz import (COLORS, animate, gif_bytes, grid, mp4_bytes, plane, plot_curves, plot_paths, save_gif, save_mp4,
                        save_strip, save_webp, show_strips, side_by_side, strip, tint)

WRITERS = [(save_strip, '.png'), (save_gif, '.gif'), (save_webp, '.webp'), (save_mp4, '.mp4')]


@pytest.fixture
def clips():
    t = np.linspace(0, 1, 8)[None, :, None, None, None]
    y, x = np.mgrid[0:24, 0:32] / 32
    base = np.stack([x, y, x*y], -1)
    return np.round(255 * np.clip(base + t * np.arange(3).reshape(3, 1, 1, 1, 1) / 4, 0, 1)).astype(np.uint8)


@pytest.mark.parametrize('cols', [1, 2, 3, None])
def test_grid_holds_every_clip_once(clips, cols):
    mosaic, cols = grid(clips, cols, pad=3), cols or 2
    for i, clip in enumerate(clips):
        y, x = i // cols * 27, i % cols * 35
        assert (mosaic[:, y:y+24, x:x+32] == clip).all()
    assert mosaic.shape == (8, -(-3 // cols) * 27 - 3, cols * 35 - 3, 3)


def test_strip_keeps_every_nth_frame(clips):
    picture = strip(clips[1], every=3, pad=2)
    assert picture.shape == (24, 3*34 - 2, 3)
    for k, frame in enumerate((0, 3, 6)): assert (picture[:, k*34:k*34+32] == clips[1][frame]).all()
    assert (picture[:, 32:34] == 255).all()


@pytest.mark.parametrize('bad', [np.zeros((8, 24, 32, 3)), np.zeros((8, 3, 24, 32), np.uint8),
                                 np.zeros((24, 32, 3), np.uint8), np.zeros((0, 24, 32, 3), np.uint8)])
@pytest.mark.parametrize('save,suffix', WRITERS)
def test_bad_frames_name_the_file_and_leave_none(save, suffix, bad, tmp_path):
    with pytest.raises(NvsError, match='out' + suffix) as e: save(tmp_path/f'out{suffix}', bad)
    assert '\n' not in str(e.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('save,suffix', WRITERS)
def test_no_space_keeps_the_old_file(save, suffix, clips, tmp_path, monkeypatch):
    path = tmp_path/f'out{suffix}'
    path.write_bytes(b'old')
    def full(self, data): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(NvsError, match='No space left'): save(path, clips[0])
    monkeypatch.undo()
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('save,suffix', WRITERS)
def test_a_folder_that_is_a_file(save, suffix, clips, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(NvsError, match='file'): save(tmp_path/'file'/f'out{suffix}', clips[0])


def test_an_encoder_that_fails_names_the_file(clips, tmp_path, monkeypatch):
    def broken(*args, **kw): raise RuntimeError('no such codec')
    monkeypatch.setattr(av, 'open', broken)
    with pytest.raises(NvsError, match='out.mp4.*no such codec'): save_mp4(tmp_path/'out.mp4', clips[0])


@pytest.mark.parametrize('save,suffix', WRITERS)
def test_the_suffix_says_what_is_in_the_file(save, suffix, clips, tmp_path):
    for name in ('a.avi', 'a', 'a.mp4' if suffix != '.mp4' else 'a.gif'):
        with pytest.raises(NvsError, match=f'{name}: what is written is {suffix}'): save(tmp_path/name, clips[0])
    assert not list(tmp_path.iterdir())
    save(tmp_path/f'A{suffix.upper()}', clips[0])


def test_strips_of_several_clips_stand_below_each_other(clips, tmp_path):
    save_strip(tmp_path/'s.png', clips)
    picture = iio.imread(tmp_path/'s.png')
    assert (picture[:24] == strip(clips[0])).all() and (picture[25:49] == strip(clips[1])).all()


@pytest.mark.parametrize('h,w,scale', [(24, 32, 1), (23, 31, 1), (23, 31, 3), (1, 1, 1)])
def test_mp4_plays_in_browsers(clips, h, w, scale):
    with av.open(io.BytesIO(mp4_bytes(clips[0][:, :h, :w], fps=10, scale=scale))) as file:
        video, frames = file.streams.video[0], [*file.decode(video=0)]
        assert (video.codec.name, video.pix_fmt, video.average_rate, len(frames)) == ('h264', 'yuv420p', 10, 8)
        assert (video.height, video.width) == (h*scale + h*scale % 2, w*scale + w*scale % 2)


QUADRANTS = np.array([[(200, 40, 40), (40, 180, 60)], [(40, 60, 200), (220, 200, 40)]], np.uint8)


@pytest.mark.parametrize('fps,scale', [(12, 1), (29.97, 16)])
def test_mp4_says_how_its_colours_are_coded(fps, scale):
    clip = np.broadcast_to(QUADRANTS.repeat(32, 0).repeat(32, 1), (3, 64, 64, 3))
    with av.open(io.BytesIO(mp4_bytes(clip, fps, scale))) as file:
        video, frames = file.streams.video[0], [*file.decode(video=0)]
    c = video.codec_context
    assert {int(x) for x in (c.colorspace, c.color_primaries, c.color_trc, c.color_range)} == {1}  # BT.709, 16 to 235
    assert [float(f.pts * f.time_base * fps) for f in frames] == pytest.approx([0, 1, 2], abs=.01)
    seen = frames[0].reformat(format='rgb24', src_colorspace='ITU709').to_ndarray().astype(int)
    assert np.abs(seen[8*scale::32*scale, 8*scale::32*scale] - QUADRANTS).max() <= 4


def times_of(data):
    with Image.open(io.BytesIO(data)) as im: return [im.seek(i) or im.info['duration'] for i in range(im.n_frames)]


@pytest.mark.parametrize('fps', [.5, 7, 12, 15, 24, 30, 50, 60, 240])
def test_gif_is_on_time(clips, fps):
    times = times_of(gif_bytes(clips[0], fps))
    assert len(times) == 8 and min(times) >= 20 and max(times) - min(times) <= 10
    assert abs(sum(times) - 8 * 1000/min(fps, 50)) <= 5


def test_frames_that_stand_still_are_all_there(clips):
    still = np.concatenate([clips[0][:1].repeat(5, 0), clips[0], clips[0][-1:]])
    times = times_of(gif_bytes(still, 10))
    assert times == [100] * 14 and times_of(gif_bytes(clips[0][:1], 10)) == [100]
    shown = iio.imread(gif_bytes(still, 10), index=None, extension='.gif')
    assert np.abs(shown.astype(int) - still).mean() < 3


def test_gif_plays_at_its_speed_and_for_ever(clips, tmp_path):
    save_gif(tmp_path/'a.gif', clips, fps=5, scale=2)
    meta = iio.immeta(tmp_path/'a.gif')
    assert meta['duration'] == 200 and meta['loop'] == 0
    assert iio.imread(tmp_path/'a.gif', index=None).shape == (8, 2*50, 2*66, 3)
    assert animate(clips[0]).data[:4] == b'GIF8'


def test_figures_are_shown_once(clips):
    curves, paths = plot_curves([{'step': 1, 'loss': 1., 'psnr': 2.}]), plot_paths(np.eye(10).reshape(2, 5, 10))
    for fig in (show_strips(clips, ['a', 'b', 'c']), side_by_side(clips, clips), curves, paths):
        fig.canvas.draw()
    assert not plt.get_fignums()  # pyplot holds no second copy


def test_side_by_side_shows_the_difference(clips):
    fake = clips[0].copy()
    fake[0, 5, 5] = np.clip(fake[0, 5, 5].astype(int) + 10, 0, 255)
    difference = side_by_side(clips[0], fake, every=1, gain=3).axes[2].images[0].get_array()
    assert (difference[5, 5] == 3 * np.abs(fake[0, 5, 5].astype(int) - clips[0][0, 5, 5])).all()
    assert difference[5, 5].max() == 30
    assert not np.delete(difference[:, :32], 5, axis=0).any()


def test_curves_draw_what_they_are_given():
    runs = {'a': [{'step': 1, 'seconds': .5, 'loss': 2., 'psnr': 9.},
                  {'step': 2, 'seconds': 1., 'loss': 1., 'psnr': None}],
            'b': [{'step': 5, 'seconds': 3., 'loss': 0., 'psnr': 3.}]}
    loss, psnr = plot_curves(runs, x='seconds').axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[.5, 1.], [3.]]
    assert [list(line.get_ydata()) for line in psnr.lines] == [[9.], [3.]]
    assert loss.get_yscale() == 'linear'  # zero has no logarithm
    assert plot_curves(runs['a']).axes[0].get_yscale() == 'log'
    assert len(plot_curves([]).axes) == 2


def test_plane_is_the_best_one():
    x = np.random.default_rng(0).standard_normal((4, 10, 6)) * [5, 4, .5, .3, .2, .1]
    xy, share = plane(x)
    flat = x.reshape(-1, 6)
    variance = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    assert share == pytest.approx(variance[:2].sum() / variance.sum())
    assert xy.reshape(-1, 2).var(0, ddof=1) == pytest.approx(variance[:2])


def test_paths_of_tensors():
    codes = torch.randn(2, 5, 7, requires_grad=True)
    ax = plot_paths(codes, ['x', 'y']).axes[0]
    assert [t.get_text() for t in ax.texts] == ['x', 'y'] and len(ax.lines) == 2
    plot_paths(codes[0]), plot_paths(codes[..., :1]), plot_paths(codes[:, :1])
    plot_paths(torch.zeros(2, 5, 7))  # all in one point


def test_tints_lie_between_white_and_the_colour():
    for name, code in COLORS.items():
        full, half = to_rgb(code), tint(name, .5)
        assert tint(name, 1) == pytest.approx(full) and tint(name, 0) == (1, 1, 1)
        assert half == pytest.approx([(1+c)/2 for c in full])


def test_webp_keeps_colours_and_time(clips, tmp_path):
    save_webp(tmp_path/'a.webp', clips[2], fps=5, scale=2)
    with Image.open(tmp_path/'a.webp') as film:
        assert (film.n_frames, film.size) == (8, (64, 48)) and film.info.get('loop') == 0
        for i, frame in enumerate(clips[2]):
            film.seek(i), film.load()
            assert film.info['duration'] == 200
            assert np.abs(np.array(film.convert('RGB'))[::2, ::2].astype(int) - frame).mean() < 6
