"What readers, cache and `Clips` do with good, odd and bad input; every file is drawn here."
import json
import os
import re
import struct
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

import nvs_nb.data.clips as clips_module
import nvs_nb.data.readers as readers
from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.data.clips import Clips, SETS, choose, load_clips, load_set, to_float, to_uint8
from nvs_nb.data.frames import Window, open_rgb
from nvs_nb.data.synthetic import actor

FILM = actor(0, 0, np.arange(12) / 12, 32)  # small films keep this quick: 12 frames of 32x32


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'root').mkdir()
    return tmp_path / 'root'


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.delenv('NVS_DATA', raising=False)
    monkeypatch.delenv('NVS_CACHE', raising=False)
    return partial(load_set, **dict(size=32, frames=8, cache=tmp_path / 'cache'))


def entries(tmp_path): return sorted(p.name for p in tmp_path.glob('cache/*') if not p.name.startswith('index-'))


def save(path, pixels, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kw)
    return path


def strip(path, film=FILM, **kw):
    "Weizmann's layout: frames of 40x32 side by side"
    return save(path, np.concatenate(np.pad(film, ((0, 0), (0, 0), (4, 4), (0, 0)), mode='edge'), 1), **kw)


def stack(path, film=FILM, **kw): return save(path, np.concatenate(film, 0), **kw)


def frame_folder(path, film=FILM):
    for i, f in enumerate(film): save(path / f'{i}.png', f)
    return path


def renders(path, count=12, elevations=(20, 30), first=0):
    for p in elevations:
        for k in range(count):
            number = first + k + count * (p != elevations[0])
            name = f'image_{number:03d}_p{p:03d}_t{11 * k:03d}_r096.png'
            save(path / 'renders' / name, np.full((48, 48, 3), 5 * k + p, np.uint8))
    return path


def video(path, film=FILM, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, film, plugin='pyav', codec='mpeg4' if path.suffix == '.avi' else 'libx264', fps=12, **kw)
    return path


def gif(path, film=FILM):
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, film, plugin='pillow', duration=80, loop=0)
    return path


def cut(path, part):
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * part)])
    return path


def text(path, content='<html>404 not found</html>' * 9):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def no_frames(path):
    import av
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('mpeg4', rate=12)
        stream.width = stream.height = 32
        stream.pix_fmt = 'yuv420p'
        box.start_encoding()


def sound_only(path):
    import wave
    with wave.open(str(path), 'wb') as w:
        w.setnchannels(1), w.setsampwidth(2), w.setframerate(8000)
        w.writeframes(bytes(4000))


# ---------------------------------------------------------------- bad files and folders: one line, and nothing written
BAD = {
    'weizmann: empty root': ('weizmann', lambda r: None, 'root: no clips in it; expected <action>/<person>'),
    'chairs: empty root': ('chairs', lambda r: None, 'root: no clips in it; expected <id>/renders/image_'),
    'golf: empty root': ('golf', lambda r: None, 'root: no clips in it; expected *.jpg'),
    'folder: empty root': ('folder', lambda r: None, 'root: no clips in it; expected video files'),
    'folder: only text': ('folder', lambda r: text(r / 'notes.txt'), 'root: no clips in it'),
    'chairs: other names': ('chairs', lambda r: frame_folder(r / 'a/renders'), 'root: no clips in it'),
    'weizmann: no action folder': ('weizmann', lambda r: strip(r / 'ann_walk.jpg'),
        'ann_walk: expected <action>/<person>'),
    'weizmann: in a wrong folder': ('weizmann',
        lambda r: [strip(r / f'{a}/ann_run.jpg', FILM[:4]) for a in ('run', 'walk')],
        'walk_ann_run: expected'),
    'weizmann: width': ('weizmann', lambda r: save(r / 'walk/ann.png', np.zeros((32, 330, 3), np.uint8)),
        'ann.png: width 330 is not a whole number of frames of 40'),
    'weizmann: odd height': ('weizmann', lambda r: save(r / 'walk/ann.png', np.zeros((66, 165, 3), np.uint8)),
        'ann.png: width 165 is not a whole number of frames'),
    'weizmann: renamed text': ('weizmann', lambda r: text(r / 'walk/ann.jpg'),
        'ann.jpg: cannot be decoded ('),
    'weizmann: truncated JPEG': ('weizmann', lambda r: cut(strip(r / 'walk/ann.jpg'), .6),
        'ann.jpg: cannot be decoded (image file is truncated'),
    'weizmann: empty file': ('weizmann', lambda r: cut(strip(r / 'walk/ann.jpg'), 0), 'ann.jpg: cannot be decoded'),
    'weizmann: all short': ('weizmann', lambda r: [strip(r / f'walk/{n}.jpg', FILM[:5]) for n in 'ab'],
        'none of its 2 clips can be used; a_walk: 5 frames, 8 needed'),
    'chairs: missing view': ('chairs', lambda r: next(renders(r / 'a').glob('renders/image_003*')).unlink(),
        'image_003 of elevation p020 is missing'),
    'chairs: truncated PNG': ('chairs', lambda r: cut(next(renders(r / 'a').glob('renders/image_003*')), .5),
        'image_003_p020_t033_r096.png: cannot be decoded'),
    'chairs: mixed sizes': ('chairs', lambda r: save(next(renders(r / 'a').glob('renders/image_003*')), FILM[0]),
        '_r096.png: 32x32 pixels, but the frames before it have 48x48'),
    'golf: height': ('golf', lambda r: save(r / 'a.png', np.zeros((100, 32, 3), np.uint8)),
        'a.png: height 100 is not a whole number of frames of 32'),
    'golf: truncated JPEG': ('golf', lambda r: cut(stack(r / 'x/a.jpg'), .9),
        'a.jpg: cannot be decoded (image file is truncated'),
    'folder: loose images': ('folder', lambda r: frame_folder(r),
        '12 pictures in the folder itself (0.png, ...): the frames of a clip need a sub-folder'),
    'folder: mixed sizes': ('folder', lambda r: save(frame_folder(r / 'a') / '3.png', FILM[0, :16]),
        '3.png: 32x16 pixels, but the frames before it have 32x32'),
    'folder: text as GIF': ('folder', lambda r: text(r / 'a.gif'), 'a.gif: cannot be decoded (neither'),
    'folder: text as MP4': ('folder', lambda r: text(r / 'a.mp4'), 'a.mp4: cannot be decoded (neither'),
    'folder: empty MP4': ('folder', lambda r: text(r / 'a.mp4', ''), 'a.mp4: cannot be decoded'),
    'folder: cut MP4': ('folder', lambda r: cut(video(r / 'a.mp4'), .6), 'a.mp4: cannot be decoded'),
    'folder: AVI without its end': ('folder', lambda r: cut(video(r / 'a.avi'), .55), 'a.avi: '),
    'folder: cut GIF': ('folder', lambda r: cut(gif(r / 'a.gif'), .3), 'a.gif: c'),
    'folder: no frames': ('folder', lambda r: no_frames(r / 'a.avi'), 'a.avi: cannot be decoded (no frame in it)'),
    'folder: sound only': ('folder', lambda r: sound_only(r / 'a.avi'), 'a.avi: cannot be decoded'),
    'folder: dangling link': ('folder', lambda r: (r / 'a.mp4').symlink_to('nowhere'),
        'a.mp4: cannot be decoded (No such file'),
    'folder: link to itself': ('folder', lambda r: (r / 'a.gif').symlink_to('a.gif'), 'a.gif: cannot be decoded'),
    'folder: all short': ('folder', lambda r: (gif(r / 'a.gif', FILM[:7]), frame_folder(r / 'b', FILM[:3])),
        'none of its 2 clips can be used; a: 7 frames, 8 needed'),
    'folder: float pixels': (
        'folder', lambda r: [save(r / f'a/{i}.tif', np.ones((32, 32), np.float32)) for i in range(8)],
        '0.tif: cannot be decoded (floating-point'),
}


@pytest.mark.parametrize('window, case', [(w, case) for w in ('first', 'random') for case in BAD
                                          if w == 'first' or case.startswith('folder')])
def test_bad_files(case, window, root, load, tmp_path):
    name, build, message = BAD[case]
    build(root)
    with pytest.raises(NvsError) as error: load(name, root, window=window)
    assert message in str(error.value) and '\n' not in str(error.value)
    assert not entries(tmp_path)


def test_gif_cut_between_frames(root, load):
    "Wherever a GIF is cut: an error that names it, or all the frames that were asked for; never fewer in silence"
    whole = gif(root / 'a.gif').read_bytes()
    good = load('folder', root, cache=False).frames
    outcomes = set()
    for n in range(0, len(whole) - 1, 97):
        (root / 'a.gif').write_bytes(whole[:n])
        try:
            assert (load('folder', root, cache=False).frames == good).all()
            outcomes.add('good')
        except NvsError as e:
            assert 'a.gif: ' in str(e) or re.search(r'a: \d frames, 8 needed', str(e))
            outcomes.add('error')
    assert outcomes == {'good', 'error'}


def test_streamable_mp4_cut(root, load):
    import av
    path = root / 'a.mp4'
    with av.open(str(path), 'w', options={'movflags': 'faststart'}) as box:
        stream = box.add_stream('libx264', rate=12, options={'g': '1', 'bf': '0'})
        stream.width = stream.height = 32
        stream.pix_fmt = 'yuv420p'
        for f in [*FILM, None]: box.mux(stream.encode(f if f is None else av.VideoFrame.from_ndarray(f)))
    assert len(load('folder', root)) == 1
    cut(path, .5)
    with pytest.raises(NvsError, match=r'a\.mp4: .*(cannot be decoded|cut short)'): load('folder', root)


def test_root_missing_or_file(tmp_path, load):
    with pytest.raises(NvsError, match='nowhere: no such folder'): load('golf', tmp_path / 'nowhere')
    with pytest.raises(NvsError, match=r'x\.txt: not a folder; the root of the golf clips'):
        load('golf', text(tmp_path / 'x.txt'))
    (tmp_path / 'link').symlink_to('nowhere')
    with pytest.raises(NvsError, match='link: not a folder'): load('golf', tmp_path / 'link')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_no_permission(root, load):
    path = stack(root / 'a.jpg')
    path.chmod(0)
    with pytest.raises(NvsError, match=r'a\.jpg: .*[Pp]ermission'): load('golf', root)
    path.chmod(0o600)
    (root / 'sub').mkdir(mode=0)
    assert 'sub: cannot be listed' in load('golf', root).skipped[0]


def test_folder_that_cannot_be_listed(root, load, monkeypatch):
    stack(root / 'a.jpg'), (root / 'sub').mkdir()
    real = os.scandir

    def refuse(path):
        if str(path).endswith('sub'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', refuse)
    assert load('golf', root).skipped == ['sub: cannot be listed (Permission denied)']
    with pytest.raises(NvsError, match=r'sub: cannot be listed \(Permission denied\)'): load('golf', root / 'sub')


def test_decompression_bomb(root, load, monkeypatch):
    stack(root / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(NvsError, match=r'a\.png: .*pixels'): load('golf', root)


# ---------------------------------------------------------------- options
@pytest.mark.parametrize('ask, message', [
    (dict(name='chair'), "dataset 'chair': unknown; choose one of chairs, actors"),
    (dict(name=None), 'name must be of type str'),
    (dict(size=48), 'size 48: a power of two'), (dict(size=16), 'size 16: a whole number of at least 32'),
    (dict(size=64.), 'size 64.0:'), (dict(size='64'), "size '64'"), (dict(size=True), 'size True'),
    (dict(frames=0), 'frames 0:'), (dict(stride=0), 'stride 0:'), (dict(seed=-1), 'seed -1:'),
    (dict(window='last'), "window 'last': choose first, random, even"),
    (dict(size=128), 'size 128: the embedded chairs'),
    (dict(frames=17), 'frames 17, stride 1: the embedded chairs have 16'),
    (dict(frames=9, stride=2), 'frames 9, stride 2'),
    (dict(name='actors', root='.'), 'root .: the actors are drawn'),
    (dict(name='swings', stride=2), 'window, stride: the swings are drawn'),
    (dict(name='actors', window='random'), 'window, stride: the actors'),
    (dict(name='golf'), 'dataset golf: its files are needed'),
    (dict(name='chair-cad'), 'dataset chair-cad: its files'),
    (dict(name='folder', root='no-such-root'), 'no-such-root: no such folder'),
])
def test_bad_options(ask, message, load):
    with pytest.raises(NvsError) as error: load(**{'name': 'chairs', **ask})
    assert message in str(error.value) and '\n' not in str(error.value)


def test_nvs_data(root, load, monkeypatch):
    monkeypatch.setenv('NVS_DATA', str(root))
    renders(root / 'chairs/a'), stack(root / 'golf/a.jpg')
    assert (len(load('golf')), len(load('chair-cad'))) == (1, 1)
    assert len(load('chairs')) == 18  # the embedded ones, whatever lies in $NVS_DATA
    assert load('chairs', root / 'chairs').dataset == 'chair-cad'
    with pytest.raises(NvsError, match='dataset weizmann: its files are needed'): load('weizmann')


def test_embedded_follow_options(load):
    whole = load('chairs', size=64, frames=16)
    assert (whole.frames.shape, whole.S, whole.T) == ((18, 16, 64, 64, 3), 1, 18)
    assert (load('chairs', size=64, frames=4, stride=5).frames == whole.frames[:, :16:5]).all()
    for name in 'actors', 'swings':
        clips = load(name, size=128, frames=3)
        assert clips.frames.shape[1:] == (3, 128, 128, 3) and set(SETS) > {clips.dataset}


# ---------------------------------------------------------------- what the readers find
@pytest.mark.parametrize('path, person, action, name', [
    ('walk/lena_walk1.jpg', 'lena', 'walk', 'lena_walk1'), ('walk/lena2.jpg', 'lena', 'walk', 'lena_walk2'),
    ('wave1/ann_wave1.jpg', 'ann', 'wave1', 'ann_wave1'), ('wave1/ann_wave12.jpg', 'ann', 'wave1', 'ann_wave12'),
    ('wave2/ann.jpg', 'ann', 'wave2', 'ann_wave2'), ('run/subject12.jpg', 'subject12', 'run', 'subject12_run'),
    ('run/person1_run.jpg', 'person1', 'run', 'person1_run'),
    ('run/mary_ann_run.JPG', 'mary_ann', 'run', 'mary_ann_run'),
    ('deep/er/run/ann_run.jpg', 'ann', 'run', 'ann_run'), ('a(b/ann_a(b.jpg', 'ann', 'a(b', 'ann_a(b'),
])
def test_weizmann_names(path, person, action, name, root, load):
    strip(root / path, format='JPEG')
    clips = load('weizmann', root)
    assert (clips.static_names, clips.transient_names, clips.names) == ([person], [action], [name])


def test_weizmann_codes_and_centre(root, load):
    for action, person in ('walk', 'bob'), ('bend', 'bob'), ('walk', 'ann'): strip(root / f'{action}/{person}.png')
    video(root / 'bend/ann_bend.avi', np.pad(FILM, ((0, 0), (0, 0), (4, 4), (0, 0))))
    clips = load('weizmann', root)
    assert clips.static_names == ['ann', 'bob'] and clips.transient_names == ['bend', 'walk']
    assert [(clips.static_names[s], clips.transient_names[t]) for s, t in zip(clips.static_id, clips.transient_id)] == \
           [tuple(n.split('_')) for n in clips.names]
    assert (clips.frames[clips.names.index('bob_walk')] == FILM[:8]).all()


def test_chairs_first_elevation_centre_crop(root, load):
    made = renders(root / 'rendered_chairs/abc', elevations=(30, 20))  # numbers do not follow the elevation
    folder = made.parent / 'abc/renders'
    clips = load('chairs', root)
    assert (clips.names, clips.static_names, clips.transient_names) == (['abc'], ['shared'], ['abc'])
    assert (clips.frames[0, :, 0, 0, 0] == 5 * np.arange(8) + 20).all()
    for f in folder.iterdir():  # a dot at the edge of the middle two thirds survives, one just outside does not
        x = np.zeros((48, 48, 3), np.uint8)
        x[8, 8], x[7, 7] = (255, 0, 0), (0, 255, 0)
        save(f, x)
    frames = load('chairs', root).frames
    assert frames[0, 0, 0, 0].tolist() == [255, 0, 0] and frames[..., 1].max() == 0


def test_folder_finds_every_kind(root, load):
    gif(root / 'b.gif'), video(root / 'a10.mp4'), video(root / 'a9.avi'), frame_folder(root / 'sub/c')
    text(root / 'x.txt'), gif(root / '.hidden.gif'), frame_folder(root / '.trash/d'), gif(root / 'short.gif', FILM[:4])
    clips = load('folder', root)
    assert clips.names == ['a9', 'a10', 'b', 'sub_c'] and (clips.S, clips.T) == (1, 4)
    assert clips.skipped == ['short: 4 frames, 8 needed', '1 file .txt: not read']
    assert (clips.frames[3] == FILM[:8]).all()
    for i in range(3): assert np.abs(clips.frames[i].astype(float) - FILM[:8]).mean() < 12


def test_links_in_circles(root, load):
    stack(root / 'a/x.png')
    (root / 'a/loop').symlink_to(root, target_is_directory=True)
    (root / 'a/self').symlink_to(root / 'a', target_is_directory=True)
    assert load('golf', root).names == ['a_x']


def test_short_clips_are_counted(root, load):
    for n, length in ('a', 12), ('b', 7), ('c', 8): stack(root / f'{n}.png', FILM[:length])
    clips = load('golf', root)
    assert clips.names == ['a', 'c'] and clips.T == 2 and clips.skipped == ['b: 7 frames, 8 needed']
    assert load('golf', root).skipped == clips.skipped  # also from the cache
    assert load('golf', root, frames=4, stride=2).names == ['a', 'b', 'c']


def test_windows(root, load):
    for n in 'abcdef': stack(root / f'{n}.png')
    gif(root / '../gifs/a.gif'), frame_folder(root / '../gifs/b')
    all_frames = load('golf', root, frames=12).frames
    clips = load('golf', root, frames=4, stride=2, window='random', seed=3)
    starts = [Window(4, 'random', 2, 3).pick(12, n).start for n in clips.names]
    assert len(set(starts)) > 1
    for whole, clip, start in zip(all_frames, clips.frames, starts): assert (clip == whole[start:start + 7:2]).all()
    stack(root / 'aa.png')  # a new file does not move the windows of the others
    again = load('golf', root, frames=4, stride=2, window='random', seed=3)
    assert (again.subset([again.names.index(n) for n in clips.names]).frames == clips.frames).all()
    films = load('folder', root / '../gifs', frames=12).frames
    for clip, whole, name in zip(load('folder', root / '../gifs', frames=4, window='random').frames, films, 'ab'):
        start = Window(4, 'random').pick(12, name).start
        assert (clip == whole[start:start + 4]).all()


@pytest.mark.parametrize('size', [32, 64])
def test_any_size_and_shape(root, load, size):
    frame_folder(root / 'tall', FILM[:, :, :20])
    video(root / 'wide.mp4', np.pad(FILM, ((0, 0), (0, 0), (8, 8), (0, 0))))
    assert load('folder', root, size=size).frames.shape == (2, 8, size, size, 3)


# ---------------------------------------------------------------- pixels of every kind
GREY = FILM[0, ..., 0]


@pytest.mark.parametrize('make, want', [
    (lambda: Image.fromarray(GREY), np.stack([GREY] * 3, -1)),
    (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), np.stack([GREY] * 3, -1)),
    (lambda: Image.fromarray(GREY.astype(np.int32) * 257), np.stack([GREY] * 3, -1)),
    (lambda: Image.fromarray(GREY > 99), np.where(GREY[..., None] > 99, 255, 0) * np.ones(3)),
    (lambda: Image.fromarray(FILM[0] // 128 * 128).quantize(8), FILM[0] // 128 * 128),
    (lambda: Image.fromarray(np.dstack([FILM[0], np.zeros_like(GREY)])), np.full((32, 32, 3), 255)),
    (lambda: Image.fromarray(np.dstack([FILM[0], np.full_like(GREY, 255)])), FILM[0]),
    (lambda: Image.fromarray(np.dstack([GREY, np.full_like(GREY, 51)])),
     np.round(255 - (255. - GREY[..., None]) / 5) * np.ones(3)),
], ids='grey 16-bit 32-bit bilevel palette transparent opaque grey-alpha'.split())
def test_pixel_formats(make, want, tmp_path):
    im = make()
    path = tmp_path / ('x.tif' if im.mode == 'I' else 'x.png')
    im.save(path)
    assert np.abs(np.asarray(open_rgb(path)).astype(int) - want).max() <= 1


def test_cmyk_and_orientation(tmp_path):
    Image.fromarray(FILM[0]).convert('CMYK').save(tmp_path / 'c.jpg', quality=95)
    assert np.abs(np.asarray(open_rgb(tmp_path / 'c.jpg')).astype(int) - FILM[0]).mean() < 8
    exif = Image.Exif()
    exif[0x112] = 6  # turn a quarter to the right to look at it
    Image.fromarray(FILM[0]).save(tmp_path / 'o.png', exif=exif)
    assert (np.asarray(open_rgb(tmp_path / 'o.png')) == np.rot90(FILM[0], -1)).all()


def test_transparent_palette_gif(root, load):
    frames = []
    for i in range(8):
        f = Image.new('P', (32, 32), 0)
        f.putpalette([0, 0, 0, 255, 0, 0])
        f.paste(1, (i, 0, i + 4, 32))
        frames.append(f)
    frames[0].save(root / 'a.gif', save_all=True, append_images=frames[1:], transparency=0, disposal=2, duration=80)
    clip = load('folder', root).frames[0]
    assert (clip[3, :, 3:7] == (255, 0, 0)).all() and (clip[3, :, 8:] == 255).all()


def test_phone_video_is_turned(root, load):
    film = np.repeat(FILM, 2, 0)
    path = video(root / 'a.mp4', film)
    upright = load('folder', root).frames[0].astype(float)
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 44  # the matrix of the display, for a quarter turn to the right
    assert struct.unpack('>9i', data[at:at + 36])[:5] == (65536, 0, 0, 0, 65536)
    data[at:at + 36] = struct.pack('>9i', 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert (load('folder', root).frames[0] == np.rot90(upright, -1, axes=(1, 2))).all()


# ---------------------------------------------------------------- the cache
def spoil(kind, npy):
    meta = npy.with_suffix('.json')
    if kind == 'half': cut(npy, .5)
    if kind == 'empty': npy.write_bytes(b'')
    if kind == 'header': npy.write_bytes(b'junk' + npy.read_bytes())
    if kind == 'gone': npy.unlink()
    if kind == 'no names': meta.unlink()
    if kind == 'bad names': meta.write_text('{"names":')
    if kind == 'list': meta.write_text('[]')
    known = json.loads(meta.read_text()) if kind in ('no hashes', 'fewer') else {}
    if kind == 'no hashes': meta.write_text(json.dumps({k: v for k, v in known.items() if k != 'digests'}))
    if kind == 'fewer': meta.write_text(json.dumps({**known, 'names': []}))


@pytest.mark.parametrize('kind', [
    'half', 'empty', 'header', 'gone', 'no names', 'bad names', 'list', 'no hashes', 'fewer'])
def test_damaged_cache_is_rebuilt(kind, root, load, tmp_path, monkeypatch):
    stack(root / 'a.png')
    good = load('golf', root)
    frames, before = np.array(good.frames), entries(tmp_path)
    spoil(kind, tmp_path / 'cache' / next(n for n in before if n.endswith('.npy')))
    assert (load('golf', root).frames == frames).all() and entries(tmp_path) == before
    monkeypatch.setattr(readers, 'decode', lambda *a: pytest.fail('decoded again'))
    assert (load('golf', root).frames == frames).all()


def test_a_second_start_hashes_no_frames(root, load, monkeypatch):
    for n in 'ab': stack(root / f'{n}.png')
    stack(root / 'c.png', FILM[::-1])
    first = load('golf', root)
    fingerprint = first.fingerprint()
    some = choose(first, leave_out='b').with_ids('clip', 'clip').fingerprint()
    def refuse(clip): pytest.fail('hashed again')
    monkeypatch.setattr(readers, 'digest', refuse), monkeypatch.setattr(clips_module, 'digest', refuse)
    again = load('golf', root)
    assert isinstance(again.frames, np.memmap) and again.fingerprint() == fingerprint
    assert choose(again, leave_out='b').with_ids('clip', 'clip').fingerprint() == some != fingerprint
    monkeypatch.undo()
    assert replace(again, digests=None).fingerprint() == fingerprint  # what is kept is what hashing gives


def test_cache_key(root, load, tmp_path, monkeypatch):
    path = stack(root / 'a.png')
    clips = load('golf', root)
    assert isinstance(clips.frames, np.memmap) and not clips.frames.flags.writeable
    for change in (dict(size=64), dict(frames=4), dict(stride=1, frames=7), dict(window='random'),
                   dict(window='random', seed=1)):
        before = len(entries(tmp_path))
        load('golf', root, **change)
        assert len(entries(tmp_path)) == before + 2
    stack(path, FILM[::-1])
    assert (load('golf', root).frames[0] == FILM[::-1][:8]).all()
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / 'other'))
    load('golf', root, cache=None)
    assert len(list((tmp_path / 'other').glob('golf-*'))) == 2
    n = len(entries(tmp_path))
    assert not isinstance(load('golf', root, size=128, cache=False).frames, np.memmap) and len(entries(tmp_path)) == n


def test_cache_that_cannot_be_written(root, load, tmp_path, monkeypatch):
    stack(root / 'a.png')
    with pytest.warns(UserWarning, match='decoded clips are not kept: cannot write .*file'):
        clips = load('golf', root, cache=text(tmp_path / 'file'))
    assert (clips.frames[0] == FILM[:8]).all()

    def full(path, array):
        Path(path).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m, pytest.warns(UserWarning, match='No space left'):
        m.setattr(np, 'save', full)
        assert len(load('golf', root)) == 1
    assert not entries(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load('golf', root)


# ---------------------------------------------------------------- Clips
def clips(**changes):
    parts = dict(frames=np.stack([FILM, FILM[::-1]]), static_id=np.array([0, 0]), transient_id=np.array([0, 1]),
                 names=['a', 'b'], static_names=['shared'], transient_names=['a', 'b'], dataset='toy')
    return Clips(**{**parts, **changes})


@pytest.mark.parametrize('change, message', [
    (dict(frames=FILM), 'frames of shape (12, 32, 32, 3)'), (dict(frames=[[1]]), 'frames of shape ()'),
    (dict(frames=np.zeros((2, 3, 32, 32, 3))), 'float64, not uint8'),
    (dict(frames=np.zeros((2, 3, 32, 16, 3), np.uint8)), 'not (N, L, H, H, 3)'),
    (dict(frames=np.zeros((0, 3, 32, 32, 3), np.uint8)), 'no frames'),
    (dict(names=['a']), '2 clips need'), (dict(names=['a', 'a']), 'different names'),
    (dict(static_id=np.array([0, 1])), 'static_id runs from 0 to 1, but there are 1 codes'),
    (dict(transient_id=np.array([-1, 0])), 'from -1'),
    (dict(transient_id=np.array([0.])), 'transient_id must hold'),
    (dict(transient_id=np.array([0., 1.])), 'transient_id must hold'),
])
def test_clips_that_do_not_fit(change, message):
    with pytest.raises(NvsError) as error: clips(**change)
    assert str(error.value).startswith('toy: ') and message in str(error.value)


def test_clips_methods():
    c = clips(static_id=[0, 0])
    assert (len(c), c.L, c.size, c.S, c.T, c.static_id.dtype) == (2, 12, 32, 1, 2, np.int64)
    for idx in ([1], np.array([False, True]), slice(1, None), 1):
        assert c.subset(idx).names == ['b'] and c.subset(idx).T == 2
    x = c.batch(torch.tensor([1, 0]), frames=torch.tensor([[2, 3, 4], [5, 6, 7]]))
    assert x.shape == (2, 3, 3, 32, 32) and x.dtype == torch.float32
    assert (to_uint8(x)[0].numpy() == FILM[::-1][2:5]).all() and (to_uint8(x)[1].numpy() == FILM[5:8]).all()
    assert c.batch([0]).shape[1] == 12 and (to_float(FILM) == c.batch([0])[0]).all()
    for bad in [-1], [12], [[3, 12]], []:
        with pytest.raises(NvsError, match='of clips that have 12'): c.batch([0], frames=bad)
    with pytest.raises(NvsError, match="static 'x': choose dataset or clip or shared"): c.with_ids(static='x')
    with pytest.raises(NvsError, match="transient 'all': choose dataset or clip or shared"): c.with_ids(transient='all')
    assert c.with_ids('clip', 'clip').fingerprint() != c.fingerprint() == clips().fingerprint()


def test_fingerprint_knows_every_pixel_also_when_hashes_are_known():
    c = clips()
    known, frames = c.fingerprint(), c.frames.copy()
    frames[1, 3, 2, 1, 0] ^= 1
    others = replace(c, frames=frames), c.subset([1, 0]), c.subset([1])
    assert len({known, *(x.fingerprint() for x in others)}) == 4
    assert c.subset([1, 0]).subset([1, 0]).fingerprint() == known == replace(c, frames=c.frames.copy()).fingerprint()


def test_load_clips_follows_the_configuration(root, monkeypatch, tmp_path):
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / 'cache'))
    for n in 'abcd': stack(root / f'{n}.png')
    c = load_clips(make_config('golf', size=32, frames=4, levels=3, stride=2, keep='a,b,c', leave_out='b',
                               static_ids='shared'), root)
    assert (c.names, c.S, c.T, c.frames.shape) == (['a', 'c'], 1, 2, (2, 4, 32, 32, 3))
    assert (c.frames[1] == FILM[:8:2]).all()
    many = load_clips(make_config('golf', size=32, frames=4, levels=3, window='crop', read_frames=10, draw=3), root)
    assert many.frames.shape == (3, 10, 32, 32, 3) and (many.frames[0] == FILM[:10]).all()
    gan = load_clips(make_config('golf', model='vgan', size=32, frames=8), root)
    assert gan.frames.shape[1] == 8


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 5 bytes")])
def test_no_memory_is_not_a_damaged_file(error, tmp_path):
    "Wherever any error means damage, one about memory does not"
    from nvs_nb.data.frames import decoding
    from nvs_nb.viz import save_gif
    def fail(*args, **kw): raise error
    with pytest.raises(type(error)):
        with decoding(tmp_path / 'x.mp4'): fail()
    with pytest.MonkeyPatch.context() as m:
        m.setattr('nvs_nb.viz.gif_bytes', fail)
        with pytest.raises(type(error)): save_gif(tmp_path / 'x.gif', np.zeros((2, 8, 8, 3), np.uint8))
