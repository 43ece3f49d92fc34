"What a player shows is what is read: geometry, colours and time of films, pictures of every kind, series of files."
import gc
import os
import socket
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from nvs_nb.core import NvsError
from nvs_nb.data import frames as frames_module
from nvs_nb.data.frames import TooShort, Window, is_film, open_rgb, read_film, read_images, read_tiles, series, square
from nvs_nb.data.readers import find_sources, measure

COLORS = np.array([[[190, 50, 60], [50, 170, 80]], [[70, 80, 210], [230, 210, 60]]], np.uint8)


def film(n=6, h=48, w=64):
    "Four colours that a white bar crosses from left to right"
    frames = np.tile(COLORS.repeat(h//2, 0).repeat(w//2, 1), (n, 1, 1, 1))
    for i, f in enumerate(frames): f[h//3:h//2, w*i//n:w*i//n + w//8] = 255
    return frames


FILM = film()


def encode(path, frames=FILM, codec='libx264', pix='yuv444p', form='rgb24', options=None, ratio=None, tags=None, **kw):
    "`form='planes'`: each frame is a list of the planes in the format `pix`."
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w', **kw) as box:
        stream = box.add_stream(codec, rate=12, options=options or {'libx264': {'crf': '4', 'g': '6'}}.get(codec, {}))
        stream.height, stream.width = frames[0][0].shape if form == 'planes' else frames[0].shape[:2]
        stream.pix_fmt = pix
        if ratio: stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        for name, value in (tags or {}).items(): setattr(stream.codec_context, name, value)
        for i, f in enumerate(frames):
            shot = av.VideoFrame.from_ndarray(np.moveaxis(f, 0, -1) if form == 'planes' and f.shape[0] == 1 else f,
                                              format=pix if form == 'planes' else form)
            for name, value in (tags or {}).items(): setattr(shot, name, value)
            shot.pts, shot.time_base = i, Fraction(1, 12)
            box.mux(stream.encode(shot))
        box.mux(stream.encode(None))
    return path


def set_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    at = data.index(b'tkhd') + 44
    data[at:at + 36] = struct.pack('>9i', *(int(x*65536) for x in (a, b, 0, c, d)), 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def read(path, frames=6, size=32, **kw): return read_film(path, 'x', Window(frames, **kw), size)
def small(frames): return np.array([square(Image.fromarray(np.ascontiguousarray(f)), 32) for f in frames])
def corners(f): return f[[[8], [-8]], [4, -5]].astype(int)
def differ(a, b): return np.abs(a.astype(float) - b).mean()
def near(clip, tolerance=6, want=COLORS): assert np.abs(corners(clip[0]) - want).max() <= tolerance


# ---------------------------------------------------------------- geometry
@pytest.mark.parametrize('matrix, want', [
    ((1, 0, 0, 1), FILM), ((-1, 0, 0, 1), FILM[:, :, ::-1]), ((1, 0, 0, -1), FILM[:, ::-1]),
    ((-1, 0, 0, -1), FILM[:, ::-1, ::-1]), ((0, 1, 1, 0), FILM.swapaxes(1, 2)), ((0, 0, 0, 0), FILM),
    ((0, 1, -1, 0), np.rot90(FILM, -1, (1, 2))), ((0, -1, 1, 0), np.rot90(FILM, 1, (1, 2))),
    ((0, -1, -1, 0), FILM[:, ::-1, ::-1].swapaxes(1, 2))])
def test_display_matrix(matrix, want, tmp_path):
    path = set_matrix(encode(tmp_path / 'a.mp4'), *matrix)
    assert differ(read(path), small(want)) < 2
    assert measure(find_sources('folder', tmp_path)[0][0]) == (6, want.shape[2:0:-1])


@pytest.mark.parametrize('ratio, turned', [('64/45', False), ('4/3', False), ('8/9', False), ('4/3', True)])
def test_pixels_that_are_not_square(ratio, turned, tmp_path):
    y, x = np.mgrid[-36:36, -64:64] + .5
    disc = (x*float(Fraction(ratio)))**2 + y**2 < 24**2
    path = encode(tmp_path / 'a.mp4', np.where(disc[..., None], [230]*3, 30).astype(np.uint8)[None], ratio=ratio)
    if turned: set_matrix(path, 0, 1, -1, 0)
    wide, high = ((read(path, 1, 64)[0, ..., 0] > 130).any(axis).sum() for axis in (0, 1))
    assert abs(wide - high) <= 2 and abs(wide - 64*48/72) <= 2


# ---------------------------------------------------------------- colours
RED_BLUE = {'601': (.299, .114), '709': (.2126, .0722), '2020': (.2627, .0593)}


def planes(rgb, kind='709', full=False):
    "8-bit planes of RGB in [0, 1]"
    red, blue = RED_BLUE[kind]
    y = rgb @ [red, 1-red-blue, blue]
    c = [(rgb[..., i] - y)/(2 - 2*k) for i, k in ((2, blue), (0, red))]
    y, c = (y*255, np.multiply(c, 255)) if full else (y*219 + 16, np.multiply(c, 224))
    return np.stack([y, *(c + 128)], 1).clip(0, 255).round().astype(np.uint8)


TO_2020 = np.array([[.6274, .3293, .0433], [.0691, .9195, .0114], [.0164, .0880, .8956]])
TO_P3 = np.array([[.8225, .1774, 0], [.0332, .9669, 0], [.0171, .0724, .9108]])


def signal(curve, gamut):
    "FILM, whose white has 203 nits, in another gamut and curve"
    light = (FILM/255.)**2.4 @ gamut.T
    if curve == 'pq':
        x = (light*203/10000).clip(0)**.1593017578125
        return ((.8359375 + 18.8515625*x)/(1 + 18.6875*x))**78.84375
    if curve == 'hlg':
        e = light*.265
        return np.where(e <= 1/12, np.sqrt(3*e), .17883277*np.log(np.maximum(12*e - .28466892, 1e-9)) + .55991073)
    return light.clip(0)**(1/2.4)


HD, SD = film(1, 720, 1280)/255., film(1, 576, 720)/255.


@pytest.mark.parametrize('rgb, kind, full, tags', [
    (SD, '601', False, {}), (HD, '709', False, {}), (HD, '601', False, dict(colorspace=6)),
    (FILM/255., '709', False, dict(colorspace=1)), (FILM/255., '601', True, dict(color_range=2)),
    (FILM/255., '709', True, dict(colorspace=1, color_range=2)),
    (FILM/255., '2020', False, dict(colorspace=9)),
    (signal('', TO_2020), '2020', False, dict(colorspace=9, color_primaries=9, color_trc=14)),
    (signal('', TO_P3), '709', False, dict(colorspace=1, color_primaries=12, color_trc=1)),
    (signal('pq', TO_2020), '2020', False, dict(colorspace=9, color_primaries=9, color_trc=16)),
    (signal('hlg', TO_2020), '2020', False, dict(colorspace=9, color_primaries=9, color_trc=18)),
], ids='SD HD HD-601 709 full full-709 2020-matrix 2020 P3 PQ HLG'.split())
def test_colors_by_tags(rgb, kind, full, tags, tmp_path):
    path = encode(tmp_path / 'a.mkv', planes(rgb, kind, full), form='planes', tags=tags,
                  options={'crf': '1', 'preset': 'ultrafast'})
    near(read(path, 1), 20 if tags.get('color_trc') in (16, 18) else 6)  # HDR in 8 bits is coarse


def test_matrix_that_is_not_tagged(tmp_path):
    "goes with the primaries, and with the curves of HDR, whatever the size"
    for i, (kind, rgb, tags) in enumerate([('709', FILM/255., dict(color_primaries=1)),
                                           ('2020', signal('', TO_2020), dict(color_primaries=9)),
                                           ('2020', signal('pq', TO_2020), dict(color_trc=16))]):
        path = encode(tmp_path / f'{i}.mkv', planes(rgb, kind), form='planes', tags=tags, options={'crf': '1'})
        near(read(path, 1), 20 if 'color_trc' in tags else 6)


def test_reserved_tags():
    "Cameras write numbers that H.273 has given to nobody; they mean nothing"
    shot = av.VideoFrame.from_ndarray(FILM[0]).reformat(format='yuv444p', dst_colorspace='ITU601')
    shot.color_trc = shot.color_primaries = 3
    assert differ(np.asarray(frames_module.show(shot)[0]), FILM[0]) < 2


def test_unknown_color_space(tmp_path):
    with pytest.raises(NvsError, match=r'a\.mkv: .*unknown colour space 14'):
        read(encode(tmp_path / 'a.mkv', planes(FILM/255.), form='planes', tags=dict(colorspace=14)))


@pytest.mark.parametrize('codec, pix, suffix, form, tolerance', [
    ('prores_ks', 'yuva444p10le', 'mov', 'rgba', 4), ('png', 'rgba', 'mov', 'rgba', 0),
    ('qtrle', 'argb', 'mov', 'rgba', 0), ('libvpx-vp9', 'yuva420p', 'webm', 'rgba', 6),
    ('libvpx', 'yuva420p', 'webm', 'rgba', 6), ('ffv1', 'yuva444p', 'mkv', 'rgba', 3),
    ('mjpeg', 'yuvj444p', 'avi', 'rgb24', 6),
    ('libx264rgb', 'rgb24', 'mkv', 'rgb24', 2), ('ffv1', 'bgr0', 'avi', 'rgb24', 0),
    ('ffv1', 'gbrp10le', 'mkv', 'rgb24', 1),
    ('libx264', 'yuv420p10le', 'mp4', 'rgb24', 6), ('qtrle', 'rgb555be', 'mov', 'rgb24', 8)])
def test_pixel_formats_of_films(codec, pix, suffix, form, tolerance, tmp_path):
    alpha, want = form == 'rgba', COLORS.copy()
    frames = np.concatenate([FILM, np.full_like(FILM[..., :1], 255)], -1) if alpha else FILM
    if alpha: frames[:, 24:, 32:], want[1, 1] = 0, 255  # black below what is transparent, white to be seen
    options = {'libvpx': {'crf': '4', 'b': '0', 'auto-alt-ref': '0'}, 'mjpeg': {'qmin': '1', 'qmax': '2'}}
    path = encode(tmp_path / f'a.{suffix}', frames, codec, pix, form, options.get(codec.removesuffix('-vp9')))
    near(read(path), tolerance, want)


def test_fourth_byte_of_raw_pixels(tmp_path):
    "Nobody sets it in an AVI, where it is no alpha channel"
    frames = np.concatenate([FILM, np.zeros_like(FILM[..., :1])], -1)
    near(read(encode(tmp_path / 'a.avi', frames, 'rawvideo', 'bgra', 'rgba')), 0)
    assert read(encode(tmp_path / 'a.mov', frames, 'rawvideo', 'bgra', 'rgba')).min() == 255


# ---------------------------------------------------------------- time
def test_edit_list(tmp_path):
    "A film that was trimmed without encoding: what the list hides is not there, and 8 frames left are no damage"
    encode(tmp_path / 'long.mp4', film(12), options={'g': '12', 'bf': '0', 'crf': '4'})
    with av.open(str(tmp_path / 'long.mp4')) as old, av.open(str(tmp_path / 'a.mp4'), 'w') as new:
        stream = old.streams.video[0]
        copy, shift = new.add_stream_from_template(stream), int(Fraction(4, 12)/stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is None: continue
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            new.mux(packet)
    assert differ(read(tmp_path / 'a.mp4', 8), small(film(12)[4:])) < 2
    with pytest.raises(TooShort) as short: read(tmp_path / 'a.mp4', 9)
    assert short.value.n == 8


@pytest.mark.parametrize('mode', ['first', 'random'])
def test_cut_short(mode, tmp_path):
    start = {'movflags': 'faststart'}
    path = encode(tmp_path / 'a.mp4', film(12), options={'g': '1', 'bf': '0'}, container_options=start)
    path.write_bytes(path.read_bytes()[:-path.stat().st_size//4])
    assert read(path, 4, mode=mode).shape == (4, 32, 32, 3)
    with pytest.raises(NvsError, match=r'a\.mp4: cut short or damaged after \d frames'): read(path, 12, mode=mode)


@pytest.mark.parametrize('suffix, passes', [('mp4', 1), ('mkv', 2)])
def test_spread_over_the_whole_film(suffix, passes, tmp_path, monkeypatch):
    "A film that says how long it is, as those of phones do, is decoded once"
    path, begun, movie = encode(tmp_path / f'a.{suffix}', film(23)), [], frames_module.movie
    monkeypatch.setattr(frames_module, 'movie', lambda p: begun.append(p) or movie(p))
    told = []
    assert differ(read(path, 4, mode='even', told=told), small(film(23)[[0, 7, 15, 22]])) < 2
    assert len(begun) == passes and told[-1] == 23
    with pytest.raises(TooShort) as short: read(path, 24, mode='even')
    assert short.value.n == 23


@pytest.mark.parametrize('hint', [0, 5, 12, 10**12])
def test_a_film_that_says_a_wrong_length(hint, tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, 'said', lambda path: hint)
    path, want = encode(tmp_path / 'a.mp4', film(12)), small(film(12)[[0, 4, 7, 11]])
    assert differ(read(path, 4, mode='even'), want) < 2
    assert differ(read(path, 4), small(film(12)[:4])) < 2


def test_spread_over_what_is_left_of_a_damaged_film(tmp_path):
    options = dict(options={'g': '1', 'bf': '0'}, container_options={'movflags': 'faststart'})
    path = encode(tmp_path / 'a.mp4', film(12), **options)
    path.write_bytes(path.read_bytes()[:-path.stat().st_size//4])
    told = []
    read(path, 4, mode='even', told=told)
    assert 4 <= told[-1] < 12
    with pytest.raises(NvsError, match=r'a\.mp4: cut short or damaged after \d frames'): read(path, 12, mode='even')


def test_order_and_seams(tmp_path):
    "Frames come as they are shown; a joined recording goes on behind the seam, in another size"
    first = encode(tmp_path / '1.ts', film(8), options={'bf': '3', 'crf': '4'})
    assert differ(read(first, 8), small(film(8))) < 2
    second = encode(tmp_path / '2.ts', film(8, 96, 128))
    (tmp_path / 'a.ts').write_bytes(first.read_bytes() + second.read_bytes())
    assert differ(read(tmp_path / 'a.ts', 16), np.concatenate([small(film(8)), small(film(8, 96, 128))])) < 3


def test_streams_that_are_no_films(tmp_path):
    with av.open(str(tmp_path / 'a.mp4'), 'w') as box:
        cover, stream = box.add_stream('mjpeg', rate=1), box.add_stream('libx264', rate=12)
        cover.disposition, cover.pix_fmt, stream.pix_fmt = av.stream.Disposition.attached_pic, 'yuvj420p', 'yuv420p'
        cover.width = cover.height = 128
        stream.width, stream.height = 64, 48
        grey = av.VideoFrame.from_ndarray(np.full((128, 128, 3), 99, np.uint8)).reformat(format='yuvj420p')
        for s, frames in (cover, [grey, None]), (stream, [*map(av.VideoFrame.from_ndarray, FILM), None]):
            for f in frames: box.mux(s.encode(f))
    near(read(tmp_path / 'a.mp4'), 12)
    with av.open(str(tmp_path / 'b.mkv'), 'w') as box:
        stream = box.add_stream('pcm_s16le', rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout='mono')
        sound.sample_rate = 8000
        box.mux(stream.encode(sound))
    with pytest.raises(NvsError, match=r'b\.mkv: .*no video in it'): read(tmp_path / 'b.mkv')


def test_no_frame_is_kept(tmp_path):
    "Films of any length need the memory of a few frames, also between two runs of the garbage collector"
    path = encode(tmp_path / 'a.mp4')
    gc.collect()
    gc.disable()
    try:
        read(path, 6)
        assert not [o for o in gc.get_objects() if type(o) is av.VideoFrame and o.width > 2]
    finally: gc.enable()


def test_bars_beside_a_tall_frame():
    "As a phone that was held upright makes it: nothing of it is lost"
    tall = np.asarray(square(Image.fromarray(np.full((96, 54, 3), 200, np.uint8)), 32, 'pad'))
    assert (tall[:, 7:25] == 200).all() and not tall[:, :7].any() and not tall[:, 25:].any()
    wide = square(Image.new('RGB', (40, 30), 'white'), 32, 'pad', ratio=2)  # pixels twice as wide as high: 80 x 30
    assert wide[10:22].min() == 255 and not wide[:10].any() and not wide[22:].any()


# ---------------------------------------------------------------- by content
PICTURES = [Image.fromarray(f) for f in FILM]


def save_all(path, pictures=PICTURES, **kw):
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **kw)
    return path


def test_suffixes_say_nothing(tmp_path):
    near(read(encode(tmp_path / 'a.mp4').rename(tmp_path / 'a.gif')))
    near(read(save_all(tmp_path / 'b.gif').rename(tmp_path / 'b.mp4')), 1)
    PICTURES[0].save(tmp_path / 'c.png')
    path = (tmp_path / 'c.png').rename(tmp_path / 'c.mp4')
    near(read(path, 1), 0)
    with pytest.raises(TooShort): read(path, 2)


@pytest.mark.parametrize('name, kw', [('a.webp', dict(lossless=True)), ('a.png', {}), ('a.tif', {}), ('a.gif', {}),
                                      ('cover.png', dict(default_image=True))])
def test_films_in_pictures(name, kw, tmp_path):
    path = save_all(tmp_path / name, [Image.new('RGB', (64, 48))]*('cover' in name) + PICTURES, **kw)
    assert is_film(path) and differ(read(path), small(FILM)) < 1
    with pytest.raises(TooShort) as short: read(path, 7)
    assert short.value.n == 6
    path.write_bytes(path.read_bytes()[:-path.stat().st_size//3])
    with pytest.raises(NvsError, match=name): read(path)
    PICTURES[0].save(path)
    assert not is_film(path)


@pytest.mark.parametrize('start, message', [
    (b'', 'the file is empty'), (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    (b'<html>404</html>', 'neither'), (b'#EXTM3U\n#EXTINF:1,\nb.ts', 'neither'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage', 'neither'),
    (b'ffconcat version 1.0\nfile b.mp4', 'neither')])
def test_other_files(start, message, tmp_path):
    path = tmp_path / 'a.mp4'
    path.write_bytes(start)
    for f in read, open_rgb:
        with pytest.raises(NvsError, match=rf'a\.mp4: cannot be decoded \(.*{message}'): f(path)


def test_pipes_and_sockets_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'a.mp4')
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.path.relpath(tmp_path / 'b.mp4'))
        for path in tmp_path / 'a.mp4', tmp_path / 'b.mp4', Path(os.devnull), tmp_path:
            for f in read, open_rgb:
                with pytest.raises(NvsError, match=f'{path.name}: not a regular file'): f(path)


def test_names_of_any_bytes(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b'/caf\xe9 [1], 100%.mp4'))
    try: encode(tmp_path / 'a.mp4').rename(path)
    except OSError: pytest.skip('names here are UTF-8')
    near(read(path))


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'avi'])
def test_titles_of_any_bytes(suffix, tmp_path):
    path = tmp_path / f'a.{suffix}'
    with av.open(str(path), 'w') as box:
        box.metadata['title'] = 'Coffee'
        stream = box.add_stream('png' if suffix == 'avi' else 'libx264', rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'rgb24' if suffix == 'avi' else 'yuv444p'
        for f in (*map(av.VideoFrame.from_ndarray, FILM), None): box.mux(stream.encode(f))
    data = path.read_bytes()
    assert b'Coffee' in data
    path.write_bytes(data.replace(b'Coffee', b'caf\xe9 \xff'))
    assert frames_module.said(path) == (suffix != 'mkv')*6 and read(path).shape == (6, 32, 32, 3)


def test_bombs(tmp_path):
    "300 bytes that would become gigabytes"
    Image.new('P', (1, 1)).save(tmp_path / 'a.gif')
    one = (tmp_path / 'a.gif').read_bytes()
    at = one.index(b',')
    for side, message in (3200, '3200x3200 pixels, more than'), (30000, 'too many pixels'):
        data = bytearray(one[:at] + one[at:-1]*16 + b';')
        data[6:10] = struct.pack('<HH', side, side)
        (tmp_path / 'a.gif').write_bytes(data)
        with pytest.raises(NvsError, match=message): read(tmp_path / 'a.gif', 12)


# ---------------------------------------------------------------- pictures
@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('suffix', ['jpg', 'png', 'webp', 'tif'])
def test_orientation(turn, suffix, tmp_path):
    f, path = FILM[0], tmp_path / f'a.{suffix}'
    want = [f, f[:, ::-1], f[::-1, ::-1], f[::-1],
            f.swapaxes(0, 1), np.rot90(f, -1), f[::-1, ::-1].swapaxes(0, 1), np.rot90(f)]
    exif = Image.Exif()
    exif[0x112] = turn
    PICTURES[0].save(path, **(dict(tiffinfo={0x112: turn}) if suffix == 'tif' else dict(exif=exif)))
    got = np.asarray(open_rgb(path))
    assert got.shape == want[turn-1].shape and differ(got, want[turn-1]) < 8


GREY = np.linspace(0, 255, 48*64).reshape(48, 64)


@pytest.mark.parametrize('pixels, kw, good', [
    (GREY*257, {}, True), (GREY*16, {}, False), (GREY*64, {}, False), (GREY*128, {339: 2}, True),
    (65535 - GREY*257, {262: 0}, True)], ids=['16', '12 in 16', '14 in 16', 'signed', '0 is white'])
def test_deep_grey(pixels, kw, good, tmp_path):
    Image.fromarray(pixels.round().astype(np.uint16)).save(tmp_path / 'a.tif', tiffinfo=kw)
    if good: assert np.abs(np.asarray(open_rgb(tmp_path / 'a.tif'))[..., 0] - GREY).max() <= 1.5
    for reader, where, kw in (read_film, tmp_path / 'a.tif', {}), (read_images, [tmp_path / 'a.tif'], {}), \
            (read_tiles, tmp_path / 'a.tif', dict(aspect=4/3)):
        if good: assert reader(where, 'x', Window(1), 32, **kw).max() > 200
        else:
            with pytest.raises(NvsError, match=r'a\.tif: deep pixels'): reader(where, 'x', Window(1), 32, **kw)


@pytest.mark.parametrize('most', [4095, 65535])
def test_deep_colors(most, tmp_path):
    "12 bits where the file says 16 are refused in pictures and films alike"
    deep = (FILM*257.*most/65535).astype(np.uint16)
    (tmp_path / 'a.ppm').write_bytes(b'P6 64 48 65535 ' + deep[0].astype('>u2').tobytes())
    encode(tmp_path / 'a.mkv', deep, 'ffv1', 'rgb48le', 'rgb48le')
    for name in 'a.ppm', 'a.mkv':
        if most == 65535: near(read(tmp_path / name, 1), 1)
        else:
            with pytest.raises(NvsError, match=rf'{name}: deep pixels'): read(tmp_path / name, 1)


@pytest.mark.parametrize('pixels', [GREY*2**23, -GREY, GREY], ids=['32 bits', 'negative', '8 in 32'])
def test_pixels_of_32_bits(pixels, tmp_path):
    Image.fromarray(pixels.astype(np.int32)).save(tmp_path / 'a.tif')
    with pytest.raises(NvsError, match='known range'): read(tmp_path / 'a.tif', 1)


def test_color_profiles(tmp_path):
    "A wide gamut becomes sRGB; sRGB stays, and a damaged profile is none"
    PICTURES[0].save(tmp_path / 'a.png', icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    assert (np.asarray(open_rgb(tmp_path / 'a.png')) == FILM[0]).all()
    PICTURES[0].save(tmp_path / 'a.png', icc_profile=b'none')
    assert (np.asarray(open_rgb(tmp_path / 'a.png')) == FILM[0]).all()
    lab = ImageCms.createProfile('LAB')
    there = ImageCms.profileToProfile(PICTURES[0], ImageCms.createProfile('sRGB'), lab, outputMode='LAB')
    there.save(tmp_path / 'a.tif', icc_profile=ImageCms.ImageCmsProfile(lab).tobytes())
    assert differ(np.asarray(open_rgb(tmp_path / 'a.tif')), FILM[0]) < 3


# ---------------------------------------------------------------- a folder is one series
def order(names):
    files = [n if n.endswith(('.jpg', '.PNG')) else f'{n}.png' for n in names.split(',')]
    return [f.stem for f in series([Path('clip', n) for n in files])]


@pytest.mark.parametrize('names, want', [
    ('f10,f9,f8', 'f8,f9,f10'), ('1,0,-1,-2', '-2,-1,0,1'), ('t1,t0,t-1', 't-1,t0,t1'),
    ('x_0.5,x_0,x_-0.5', 'x_-0.5,x_0,x_0.5'), ('img-3,img-2,img-1', 'img-1,img-2,img-3'),
    ('1.10,1.9,1.11', '1.9,1.10,1.11'), ('f2,f4,f0', 'f0,f2,f4'), ('17.175,17.211,17.243', '17.175,17.211,17.243'),
    ('f2_0.07,f3_0.1,f1_0.03', 'f1_0.03,f2_0.07,f3_0.1'), ('f (2),f (1)', 'f (1),f (2)'), ('F2.PNG,f1', 'f1,F2'),
    ('one', 'one'), ('s1e2,s1e1', 's1e1,s1e2')])
def test_series(names, want): assert order(names) == want.split(',')


@pytest.mark.parametrize('names, message', [
    ('f0,f0_mask,f1,f1_mask', 'f0_mask.png: not named like f0.png'), ('f0,f1,cover', 'not named like'),
    ('f0,f0.jpg,f1', 'f0.png: of another kind than f0.jpg'), ('f0,f1,f3', 'f3.png: does not follow f1.png'),
    ('f1,f2,f2 (1)', 'f2 (1).png: not named like'), ('f1,f01,f2', 'f1.png: has the same number as f01.png'),
    ('a1,a2,b1,b2', 'b1.png: not named like a1.png'), ('c0_1,c0_2,c1_1,c1_2', 'has the same number as'),
    ('f0,f1,f999', 'f999.png: does not follow')])
def test_no_series(names, message):
    with pytest.raises(NvsError) as error: order(names)
    assert message in str(error.value) and 'one' in str(error.value)
