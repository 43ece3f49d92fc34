"""From a server to clips: downloads over a bad line, archives that are not trusted, and `nvs data`.

All servers run in this process. Whatever goes wrong must be one `NvsError` that names the address or the file, and must
leave no folder that a reader could take for a data set.
"""
import bz2
import contextlib
import gc
import gzip
import hashlib
import http.server
import io
import lzma
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nvs_nb.data import download as archives
from nvs_nb import data_commands
from nvs_nb.data import download as downloads
from nvs_nb.data.download import ACTIONS, OFFICIAL, PEOPLE, Limits, Truncated, extract, get
from nvs_nb.core import NvsError
from nvs_nb.data.clips import load_set
from nvs_nb.data.download import Gone, fetch
from nvs_nb.data.readers import find_sources
from nvs_nb.data.synthetic import actor, golfer

SMALL = Limits(entries=100, bytes=50e6)
NOISE = np.random.default_rng(0).bytes(300_000)  # what a picture looks like to a packer


# ---- a server, and what it serves

class Server(http.server.ThreadingHTTPServer):
    "Serves `files` (path: bytes). `habits` change what it does, one for each request; `log` keeps (status, range)"
    def handle_error(self, *_): pass  # customers who leave early are no news

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.tags, self.habits, self.log = {}, {}, [], []
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        s, path = self.server, urlsplit(self.path).path
        habit = s.habits.pop(0) if s.habits else {}
        if 'serve' in habit: s.files[path], s.tags[path] = habit['serve'], {'ETag': '"another"'}
        data, tags = habit.get('data', s.files.get(path)), habit.get('tags', s.tags.get(path, {'ETag': '"one"'}))
        asked, condition = self.headers.get('Range'), self.headers.get('If-Range')
        start, stop = 0, len(data or b'')
        if asked and not habit.get('deaf') and (habit.get('rash') or condition in (None, *tags.values())):
            first, last = re.fullmatch(r'bytes=(\d+)-(\d*)', asked).groups()
            start, stop = int(first), min(int(last) + 1, stop) if last else stop
        status = habit.get('status', 404 if data is None else 200)
        if status == 200 and (start or stop < len(data)): status = 416 if start >= len(data) else 206
        s.log.append((status, asked))
        self.send_response(status)
        if status == 302: self.send_header('Location', habit['to'])
        if status == 416: self.send_header('Content-Range', f'bytes */{len(data)}')
        body = data[start:stop] if status in (200, 206) else b'<html>so sorry</html>'
        if status == 206: self.send_header('Content-Range', f'bytes {start}-{stop-1}/{len(data)}')
        if status in (200, 206): [self.send_header(*t) for t in tags.items()]
        if not habit.get('mute'): self.send_header('Content-Length', str(len(body) + habit.get('lie', 0)))
        self.end_headers()
        self.wfile.write(body[:habit.get('hang up', len(body))])


@pytest.fixture(scope='module', autouse=True)
def quick():
    "imageio collects garbage four times for each video; what is there already need not be looked at again and again"
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    "An empty folder to work in, no data or cache of this machine, no proxy, no patience"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('NVS_DATA', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / '.cache'))
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(downloads, 'PAUSE', .001)
    return tmp_path


@pytest.fixture
def server():
    with Server() as s:
        threading.Thread(target=s.serve_forever, args=[.01], daemon=True).start()
        yield s
        s.shutdown()


@pytest.fixture
def shop(server):
    "A server with one archive, noise in a tar"
    server.files['/a.tar'] = tar(('a.jpg', NOISE))
    server.data, server.address = server.files['/a.tar'], f'{server.url}/a.tar'
    return server


def tar(*members, mode='w', **options):
    "A tar of (name, bytes) and of (name, kind of tarfile, where a link leads)"
    with tarfile.open(fileobj=(f := io.BytesIO()), mode=mode, **options) as t:
        for name, what, *link in members:
            info = tarfile.TarInfo(name)
            if link or not what or len(what) == 1: info.type, info.linkname = what or b'0', (link or [''])[0]
            else: info.size = len(what)
            t.addfile(info, io.BytesIO(what))
    return f.getvalue()


def zipped(*members):
    "A zip of (name, bytes)"
    with zipfile.ZipFile(f := io.BytesIO(), 'w', zipfile.ZIP_DEFLATED) as z:
        for name, what in members: z.writestr(name, what)
    return f.getvalue()


def jpeg(pixels):
    Image.fromarray(pixels).save(f := io.BytesIO(), 'jpeg', quality=95)
    return f.getvalue()


@pytest.fixture(scope='module')
def weizmann(tmp_path_factory):
    "The ten zips: 93 films of 60x48, of which lena has two that run, walk and skip"
    film, avi = tmp_path_factory.mktemp('weizmann') / 'film.avi', []
    for i in range(6):
        iio.imwrite(film, actor(i, 0, np.arange(8) / 8, 64)[:, 8:-8, 2:-2], plugin='pyav', codec='ffv1', fps=25)
        avi.append(film.read_bytes())
    zips = {}
    for k, action in enumerate(ACTIONS):
        takes = {('lena', a): '12' for a in ('run', 'walk', 'skip')}
        names = [f'{p}_{action}{t}.avi' for p in PEOPLE for t in takes.get((p, action), ('',))]
        zips[f'/{action}.zip'] = zipped(*[(n, avi[(i + k) % 6]) for i, n in enumerate(names)], ('Thumbs.db', b'x'))
    return zips


@pytest.fixture(scope='module')
def chairs():
    "Nine models of 60x60 in two elevations of 8 sides; one has lost a side"
    members = [('rendered_chairs/', tarfile.DIRTYPE), ('rendered_chairs/all_chair_names.mat', b'MATLAB')]
    for i in range(9):
        for n, f in enumerate(golfer(i, 16, 64)):
            Image.fromarray(f[2:-2, 2:-2]).save(png := io.BytesIO(), 'png', compress_level=1)
            name = f'image_{n:03d}_p{20 + 10*(n > 7):03d}_t{n % 8*45:03d}_r096.png'
            if (i, n) != (4, 3): members.append((f'rendered_chairs/{i:032x}/renders/{name}', png.getvalue()))
    return tar(*members)


@pytest.fixture(scope='module')
def golf():
    "Five stacks of 32 frames, as VGAN packed them"
    top, films = 'frames-stable-many', [jpeg(np.concatenate(golfer(i, 32, 32))) for i in range(5)]
    members = [(f'{top}/videos/{i//3}.mp4/{i % 3:04d}.jpg', f) for i, f in enumerate(films)]
    return tar((f'{top}/', tarfile.DIRTYPE), *members, mode='w:bz2')


def complaint(do, *words, kind=NvsError):
    "The one line of an error that names all of `words`"
    with pytest.raises(NvsError) as caught: do()
    line = str(caught.value)
    assert type(caught.value) is kind and '\n' not in line, repr(caught.value)
    assert not [w for w in words if str(w) not in line], line
    return line


def names(top='.'):
    "Every file and folder, relative"
    return sorted(p.relative_to(top).as_posix() for p in Path(top).rglob('*') if '.cache' not in p.parts)


def load(shop, **kw): return fetch(shop.address, Path('a.tar'), progress=False, **kw)


# ---- downloads

def test_resumes_where_the_line_broke(shop):
    shop.habits = [{'hang up': 100_000}, {'hang up': 50_000}]
    assert load(shop).read_bytes() == shop.data and names() == ['a.tar']
    assert shop.log == [(200, None), (206, 'bytes=100000-'), (206, 'bytes=150000-')]


def test_resumes_in_another_process(shop):
    "What a killed program left is enough: the part and its note"
    shop.habits = [{'hang up': 100_000}] + [{'status': 503}]*5
    complaint(lambda: load(shop), shop.address, '503', '--from')
    assert names() == ['a.tar.json', 'a.tar.part'] and Path('a.tar.part').read_bytes() == shop.data[:100_000]
    load(shop)
    assert shop.log[-1] == (206, 'bytes=100000-') and Path('a.tar').read_bytes() == shop.data


def test_complete_is_not_fetched_again(shop):
    load(shop)
    load(shop)
    assert len(shop.log) == 1


def test_server_without_ranges_starts_over(shop):
    shop.habits = [{'hang up': 100_000}, {'deaf': True}]
    assert load(shop).read_bytes() == shop.data
    assert [status for status, _ in shop.log] == [200, 200]


@pytest.mark.parametrize('habit, answers', [({}, [200, 200]), ({'rash': True}, [200, 206, 200])],
                         ids=['if-range', 'if-range ignored'])
def test_file_changed_between_two_tries(shop, habit, answers):
    other = tar(('a.jpg', NOISE[::-1]))
    shop.habits = [{'hang up': 100_000}, {'serve': other, **habit}]
    assert load(shop).read_bytes() == other and [status for status, _ in shop.log] == answers


@pytest.mark.parametrize('change', [0, 10_240], ids=['same', 'longer'])
def test_without_a_tag_the_length_must_agree(shop, change):
    shop.tags['/a.tar'] = {}
    shop.habits = [{'hang up': 100_000}]
    fetch(shop.address, Path('a.tar'), stop=100_000, progress=False)
    shop.files['/a.tar'] += bytes(change)
    assert load(shop).read_bytes() == shop.files['/a.tar']
    assert [status for status, _ in shop.log] == ([206, 206] if not change else [206, 206, 200])


def test_weak_tag_is_not_used(shop):
    shop.tags['/a.tar'] = {'ETag': 'W/"one"', 'Last-Modified': 'Mon, 01 Jan 2024 00:00:00 GMT'}
    shop.habits = [{'hang up': 100_000}]
    assert load(shop).read_bytes() == shop.data
    assert [status for status, _ in shop.log] == [200, 206]


def test_length_not_told(shop):
    shop.habits = [{'mute': True}]
    assert load(shop).read_bytes() == shop.data


def test_length_is_a_lie(shop):
    "Too long: after five tries that bring nothing new comes a line; a 416 tells the truth the next time"
    shop.habits = [{'lie': 99, 'deaf': True}]*6
    complaint(lambda: load(shop), shop.address, f'{len(shop.data):,} of {len(shop.data) + 99:,}', '--from')
    assert names() == ['a.tar.json', 'a.tar.part'] and len(shop.log) == 6
    assert load(shop).read_bytes() == shop.data and shop.log[-1][0] == 416


def test_beyond_the_end_means_complete(shop):
    Path('a.tar.part').write_bytes(shop.data)
    downloads.write_json('a.tar.json', dict(url=shop.address, tag='"one"', total=None))
    load(shop)
    assert shop.log == [(416, f'bytes={len(shop.data)}-')] and names() == ['a.tar']


def test_beyond_the_end_of_a_shorter_file(shop):
    Path('a.tar.part').write_bytes(shop.data + b'more')
    downloads.write_json('a.tar.json', dict(url=shop.address, tag='"one"', total=None))
    assert load(shop).read_bytes() == shop.data
    assert [status for status, _ in shop.log] == [416, 200]


def test_part_of_another_address_is_dropped(shop):
    Path('a.tar.part').write_bytes(b'x'*100)
    downloads.write_json('a.tar.json', dict(url='http://elsewhere/a.tar', tag='"one"', total=len(shop.data)))
    assert load(shop).read_bytes() == shop.data and shop.log == [(200, None)]


def test_page_instead_of_archive(shop):
    shop.habits = [{'data': b'<html>Welcome to our hotel'}]
    complaint(lambda: load(shop), shop.address, '<html>Welcome', '--from')
    assert names() == []


def test_page_does_not_cost_the_part(shop):
    shop.habits = [{'hang up': 100_000}, {'data': b'<html>' + bytes(2000), 'deaf': True}]
    complaint(lambda: load(shop), '<html>')
    assert load(shop).read_bytes() == shop.data and shop.log[-1] == (206, 'bytes=100000-')


@pytest.mark.parametrize('status, tries, kind', [(404, 1, Gone), (410, 1, Gone), (403, 1, NvsError), (500, 5, NvsError),
                                                 (429, 5, NvsError)])
def test_refusals(shop, status, tries, kind):
    shop.habits = [{'status': status}]*9
    complaint(lambda: load(shop), shop.address, status, '--from', kind=kind)
    assert len(shop.log) == tries and names() == []


def test_redirected(shop):
    shop.habits = [{'status': 302, 'to': shop.address}]
    fetch(f'{shop.url}/b.tar', Path('b.tar'), progress=False)
    assert Path('b.tar').read_bytes() == shop.data


def test_unreachable():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{s.getsockname()[1]}/a.tar'
    complaint(lambda: fetch(url, Path('a.tar'), progress=False), url, 'refused', '--from')


@pytest.mark.parametrize('url', ['http://[::1/a.tar', 'http://a b/a.tar', 'http://127.0.0.1:port/a.tar'])
def test_no_address(url): complaint(lambda: fetch(url, Path('a.tar'), progress=False), url, 'not an address')


def test_published_size_and_hash(shop):
    right = dict(size=len(shop.data), sha256=hashlib.sha256(shop.data).hexdigest())
    complaint(lambda: load(shop, **{**right, 'size': 99}), 'a.tar', '99')
    complaint(lambda: load(shop, **{**right, 'sha256': '0'*64}), 'a.tar', '0'*64)
    assert 'a.tar.part' not in names() and 'a.tar' not in names()
    assert load(shop, **right).read_bytes() == shop.data


def test_disk_too_small(shop, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    complaint(lambda: load(shop), '0.00 GB are free')
    assert names() == []


def test_disk_fills_up(shop):
    "What was written stays, and the download goes on when there is room"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try: complaint(lambda: load(shop), 'cannot write', 'a.tar.part')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    had = Path('a.tar.part').stat().st_size
    assert load(shop).read_bytes() == shop.data and shop.log[-1] == (206, f'bytes={had}-') and 0 < had <= 150_000


def test_folder_not_writable(shop):
    Path('file').touch()
    complaint(lambda: fetch(shop.address, Path('file/a.tar'), progress=False), 'cannot write file/a.tar')


# ---- archives that are not trusted

def hostile_tars():
    REG, LINK = tarfile.REGTYPE, tarfile.SYMTYPE
    yield 'absolute', [('/tmp/b.jpg', b'')], 'absolute path'
    yield 'climbs', [('a/../../b.jpg', b'')], 'leads out'
    yield 'climbs first', [('../b.txt', b'')], 'leads out'
    yield 'backslash', [('a\\..\\b.jpg', b'')], 'leads out'
    yield 'drive', [('C:b.jpg', b'')], 'absolute path'
    yield 'newline', [('b\n.jpg', b'')], 'no name for a file'
    yield 'deep', [('a/'*50 + 'b.jpg', b'')], 'nested'
    yield 'symlink', [('b.jpg', LINK, 'a.jpg')], 'is a link'
    yield 'through a link', [('b', LINK, '/tmp'), ('b/c.jpg', b'')], 'is a link'
    yield 'hard link', [('b.jpg', tarfile.LNKTYPE, 'a.jpg')], 'is a link'
    yield 'device', [('b.jpg', tarfile.BLKTYPE, '')], 'device'
    yield 'pipe', [('b', tarfile.FIFOTYPE, '')], 'device or pipe'
    yield 'sparse', [('b.jpg', tarfile.GNUTYPE_SPARSE, '')], 'sparse'
    yield 'twice', [('a.jpg', b'')], 'overwrite'
    yield 'file and folder', [('a.jpg/b.jpg', b'')], 'overwrite'
    yield 'too many', [(f'{i}', REG, '') for i in range(100)], 'more than 100 entries'


@pytest.mark.parametrize('members, word', [pytest.param(m, w, id=i) for i, m, w in hostile_tars()])
def test_hostile_tar(members, word):
    "The first file is honest; nothing of it is left"
    Path('x.tar').write_bytes(tar(('a.jpg', b'aa'), *members))
    complaint(lambda: extract('x.tar', 'films', ['.jpg'], SMALL, progress=False), 'x.tar', word, 'refused')
    assert names() == ['x.tar']


@pytest.mark.skipif(not hasattr(tarfile, 'data_filter'), reason='this Python has no filters for tar files')
def test_stricter_than_the_library():
    for what, members, _ in hostile_tars():
        with tarfile.open(fileobj=io.BytesIO(tar(*members))) as t:
            member = t.next()
        with contextlib.suppress(tarfile.FilterError):
            tarfile.data_filter(member, '.')
            continue
        assert what in ('climbs', 'climbs first', 'through a link', 'device', 'pipe', 'hard link', 'symlink'), what


def unix(name, mode):
    "A zip entry of a kind that only Unix has"
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize('member, word', [
    ('/tmp/b.jpg', 'absolute path'), ('../b.jpg', 'leads out'), ('a\\..\\b.jpg', 'leads out'),
    ('C:\\b.jpg', 'absolute path'), (unix('b.jpg', stat.S_IFLNK | 0o777), 'is a link'),
    (unix('b.jpg', stat.S_IFCHR), 'device'), ('a.jpg', 'overwrite')])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_hostile_zip(member, word):
    Path('x.zip').write_bytes(zipped(('a.jpg', b'aa'), (member, b'/etc/passwd')))
    complaint(lambda: extract('x.zip', 'films', ['.jpg'], SMALL, progress=False), 'x.zip', word, 'refused')
    assert names() == ['x.zip']


def test_name_that_ends_early():
    "What follows a zero byte is not shown by everybody"
    Path('x.zip').write_bytes(zipped(('bX.jpg', b'bb')).replace(b'bX.jpg', b'b\0.jpg'))
    complaint(lambda: extract('x.zip', 'films', ['.jpg', ''], SMALL, progress=False), 'no name for a file')


def test_same_name_from_two_folders():
    Path('x.zip').write_bytes(zipped(('a/a.avi', b'aa'), ('b/a.avi', b'bb')))
    complaint(lambda: extract('x.zip', 'films', ['.avi'], SMALL, flat=True, progress=False), 'overwrite')


def test_encrypted_zip():
    data = bytearray(zipped(('a.jpg', b'aa')))
    for head, flags in (b'PK\3\4', 6), (b'PK\1\2', 8): data[data.index(head) + flags] |= 1
    Path('x.zip').write_bytes(data)
    complaint(lambda: extract('x.zip', 'films', ['.jpg'], SMALL, progress=False), 'x.zip', 'encrypted')
    assert names() == ['x.zip']


@pytest.mark.parametrize('pack', [lambda z: tar(('a.jpg', z), mode='w:bz2'), lambda z: tar(('a.jpg', z), mode='w:gz'),
                                  lambda z: tar(('a.jpg', z), mode='w:xz', preset=0), lambda z: zipped(('a.jpg', z))],
                         ids=['bz2', 'gz', 'xz', 'zip'])
def test_bombs(pack):
    Path('x').write_bytes(pack(bytes(2**24 + 2**20)))
    complaint(lambda: extract('x', 'films', ['.jpg'], SMALL, progress=False), 'x', '100 times its size')
    assert names() == ['x']


def test_bomb_among_what_is_not_taken():
    Path('x').write_bytes(tar(('a.jpg', b'aa'), ('b.txt', bytes(2**24 + 2**20)), mode='w:bz2'))
    complaint(lambda: extract('x', 'films', ['.jpg'], SMALL, progress=False), 'x', '100 times its size')


def test_entry_that_vanishes():
    "A damaged header in the middle ends the listing of `tarfile` in silence"
    data = bytearray(tar(('a.jpg', b'aa'), ('b.jpg', b'bb')))
    data[1024 + 150] ^= 1  # in the sum over the second header
    Path('x').write_bytes(data)
    complaint(lambda: extract('x', 'films', ['.jpg'], SMALL, progress=False), 'x: damaged', kind=archives.Damaged)


@pytest.mark.parametrize('pack', [tar, lambda *m: tar(*m, mode='w:gz'), zipped], ids=['tar', 'gz', 'zip'])
def test_too_large(pack):
    Path('x').write_bytes(pack(('a.jpg', NOISE), ('b.jpg', NOISE)))
    complaint(lambda: extract('x', 'films', ['.jpg'], replace(SMALL, bytes=4e5), progress=False), 'more than 0.0004 GB')
    assert names() == ['x']


def pack(kind, members):
    if kind == 'zip': return zipped(*members)
    return dict(tar=bytes, gz=gzip.compress, bz2=bz2.compress, xz=lzma.compress)[kind](tar(*members))


KINDS = 'tar gz bz2 xz zip'.split()


@pytest.mark.parametrize('kind', KINDS)
def test_every_packing(kind):
    "Only what a reader reads is taken, in the folders it lies in"
    members = [('./top/a/1.jpg', NOISE[:5000]), ('top/b.JPG', b'bb'), ('top/read.me', b'no'), ('top/.c.jpg', b'no'),
               ('__MACOSX/._a.jpg', b'no')]
    Path('x').write_bytes(pack(kind, members if kind == 'zip' else [('top', tarfile.DIRTYPE), *members]))
    assert extract('x', 'films', ['.jpg'], SMALL, progress=False) == 2
    assert names('films') == ['top', 'top/a', 'top/a/1.jpg', 'top/b.JPG']
    assert Path('films/top/a/1.jpg').read_bytes() == NOISE[:5000]


@pytest.mark.parametrize('kind', KINDS)
def test_cut_short_anywhere(kind):
    members = [(f'{i}.jpg', NOISE[1500*i:1500*(i + 1)]) for i in range(3)]
    whole = pack(kind, members)
    end = 3*2048 if kind == 'tar' else len(whole)  # the empty blocks after a plain tar may be cut
    cuts = [*range(512, end, 509), *range(512, end, 512)]
    for cut in cuts:
        Path('x').write_bytes(whole[:cut])
        with pytest.raises(Truncated, match='^x: only the beginning'):
            extract('x', 'films', ['.jpg'], SMALL, progress=False)
    assert names() == ['x'] and len(cuts) > 10


@pytest.mark.parametrize('kind', KINDS)
def test_any_damage_is_one_line(kind):
    "Flipped bytes: an error that names the file, or, where a format has no checksums, other bytes in the right place"
    members, rng = [(f'a/{i}.jpg', NOISE[700*i:700*(i + 1)]) for i in range(3)], np.random.default_rng(1)
    whole, refused = pack(kind, members), 0
    for _ in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=2)] ^= rng.integers(1, 256, 2, np.uint8)
        Path('x').write_bytes(data.tobytes())
        try: extract('x', 'films', ['.jpg'], SMALL, progress=False)
        except NvsError as e:
            refused += 1
            assert 'x' in str(e) and names() == ['x']
        shutil.rmtree('films', ignore_errors=True)
    assert refused > (5 if kind == 'tar' else 20)


@pytest.mark.parametrize('data, word', [
    (b'', 'not an archive'), (b'<html>' + bytes(600), 'not an archive'), (bytes(2000), 'not an archive'),
    (gzip.compress(b'no tar'*999), 'damaged'), (zipped(('a.txt', b'')), 'no .jpg in it')],
    ids=['empty', 'page', 'zeros', 'no tar', 'no film'])
def test_not_an_archive_of_films(data, word):
    Path('x').write_bytes(data)
    with pytest.raises(NvsError, match=f'^x: .*{word}'): extract('x', 'films', ['.jpg'], SMALL, progress=False)
    assert names() == ['x']


@pytest.mark.parametrize('what', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_interrupted_leaves_nothing(monkeypatch, what):
    def stop(source, out, n):
        out.write(b'half')
        raise what
    Path('x').write_bytes(tar(('a.jpg', b'aa')))
    with monkeypatch.context() as m:
        m.setattr(archives.shutil, 'copyfileobj', stop)
        with pytest.raises((KeyboardInterrupt, NvsError)) as e: extract('x', 'films', ['.jpg'], SMALL, progress=False)
    assert isinstance(what, KeyboardInterrupt) or 'cannot write' in str(e.value) and 'No space' in str(e.value)
    assert names() == ['x']


def test_killed_run_is_cleaned_up():
    Path('.films.part/old').mkdir(parents=True)
    Path('x').write_bytes(tar(('a.jpg', b'aa')))
    extract('x', 'films', ['.jpg'], SMALL, progress=False)
    assert names() == ['films', 'films/a.jpg', 'x']


# ---- from a server to clips

def test_weizmann_end_to_end(server, weizmann):
    server.files = weizmann
    got = get('weizmann', 'sets', server.url, progress=False)
    assert (got.new, got.there, got.missing) == ([f'{a}.zip' for a in ACTIONS], [], [])
    assert len(find_sources('weizmann', got.folder)) == 93 and len(names('sets')) == 93 + 11  # no archive, nothing else
    clips = load_set('weizmann', got.folder, size=32, frames=8)
    assert (len(clips), clips.S, clips.T, len(clips.skipped)) == (90, 9, 10, 3)
    assert all(s.startswith(('lena_run2', 'lena_walk2', 'lena_skip2')) for s in clips.skipped)
    pairs = {*zip(clips.static_id.tolist(), clips.transient_id.tolist())}
    assert len(pairs) == 90 and (clips.static_names, clips.transient_names) == (PEOPLE, sorted(ACTIONS))


def test_weizmann_without_skip_and_then_with(server, weizmann):
    server.files = {k: v for k, v in weizmann.items() if k != '/skip.zip'}
    got = get('weizmann', 'sets', f'{server.url}/', progress=False)
    assert got.missing == ['skip.zip'] and len(got.new) == 9
    clips = load_set('weizmann', got.folder, size=32, frames=8, draw=3)
    assert 'skip' not in {s.transient for s in find_sources('weizmann', got.folder)} and len(clips) == 3
    server.files, server.log = weizmann, []
    again = get('weizmann', 'sets', server.url, progress=False)
    assert (again.new, len(again.there), len(server.log)) == (['skip.zip'], 9, 1)


def test_chairs_end_to_end(server, chairs):
    server.files['/rendered_chairs.tar'], server.habits = chairs, [{'hang up': 20_000}, {'hang up': 20_000}]
    got = get('chairs', 'sets', server.url + '/', progress=False)
    clips = load_set('chairs', got.folder, size=32, frames=8)
    assert (clips.set, len(clips), clips.S, clips.T) == ('chair-cad', 8, 1, 8)
    assert clips.skipped == [f'{4:032x}: image_003 of elevation p020 is missing']
    draws = [load_set('chairs', got.folder, size=32, frames=8, draw=5, seed=s).names for s in (0, 0, 1)]
    assert len(draws[0]) == 5 and draws[0] == draws[1] != draws[2] and {*draws[2]} < {*clips.names}


def test_golf_end_to_end(server, golf, monkeypatch):
    server.files['/golf.tar.bz2'] = golf
    monkeypatch.setenv('NVS_DATA', 'sets')
    get('golf', 'sets', f'{server.url}/golf.tar.bz2', progress=False)
    clips = load_set('golf', size=32, frames=32)
    assert clips.frames.shape == (5, 32, 32, 32, 3) and clips.names[-1] == 'frames-stable-many_videos_1.mp4_0001'
    assert abs(clips.frames[4].astype(int) - golfer(4, 32, 32)).mean() < 8


def test_only_the_beginning(server):
    "Whole films of a download that was stopped; the part is kept if asked for, and goes on later"
    server.files['/golf.tar.bz2'] = tar(*[(f'{i}.jpg', NOISE[i*9000:(i + 1)*9000]) for i in range(30)], mode='w:gz')
    address = server.url + '/'
    complaint(lambda: get('golf', 'sets', address, progress=False, first=1e-6), 'only the beginning', 'a larger --first')
    get('golf', 'sets', address, progress=False, first=2e-4, keep=True)
    films = names('sets/golf')
    assert 15 < len(films) < 25 and server.log == [(206, 'bytes=0-999'), (206, 'bytes=1000-199999')]
    assert all(Path('sets/golf', f).read_bytes() == NOISE[int(f[:-4])*9000:][:9000] for f in films)
    shutil.rmtree('sets/golf')
    get('golf', 'sets', address, progress=False)
    assert len(names('sets')) == 31 and server.log[-1] == (206, 'bytes=200000-')


def test_damaged_download_is_fetched_again(server, chairs):
    "A server that lies about a shorter length: only unpacking can tell"
    server.files['/rendered_chairs.tar'], server.habits = chairs, [{'data': chairs[:len(chairs)//2]}]
    complaint(lambda: get('chairs', 'sets', server.url + '/', progress=False), 'only the beginning', 'fetches it again')
    assert names('sets') == []
    assert get('chairs', 'sets', server.url + '/', progress=False).new == ['rendered_chairs.tar']


def test_hostile_download_leaves_no_set(server):
    server.files['/golf.tar.bz2'] = tar(('a.jpg', b'aa'), ('../b.jpg', b''))
    complaint(lambda: get('golf', 'sets', server.url + '/', progress=False), 'golf.tar.bz2', 'leads out')
    assert not Path('sets/golf').exists() and not Path('sets/b.jpg').exists()


def test_official_table(server, weizmann, monkeypatch):
    "The addresses of the authors, and their size and hash where there are some"
    assert [len(o.archives) for o in OFFICIAL.values()] == [1, 10, 1]
    assert all(re.match('https?://', a.url) and len(a.sha256) in (0, 64) for o in OFFICIAL.values() for a in o.archives)
    server.files, data = weizmann, weizmann['/walk.zip']
    walk = archives.Archive(f'{server.url}/walk.zip', 'walk', len(data), hashlib.sha256(data).hexdigest())
    for change, words in (dict(size=9), ['9 that its authors']), (dict(sha256='0'*64), ['sha256']), ({}, []):
        monkeypatch.setitem(OFFICIAL, 'weizmann', replace(OFFICIAL['weizmann'], archives=(replace(walk, **change),)))
        if words: complaint(lambda: get('weizmann', 'sets', progress=False), 'walk.zip', *words)
        else: assert get('weizmann', 'sets', progress=False).new == ['walk.zip']
    Path('walk.zip').write_bytes(data + b'!')
    complaint(lambda: get('weizmann', 'other', 'walk.zip', progress=False), 'walk.zip', 'its authors publish')


def test_from_files_and_folders(weizmann, chairs):
    for name in 'walk', 'run': Path(f'{name}.zip').write_bytes(weizmann[f'/{name}.zip'])
    Path('mine.tar').write_bytes(chairs)
    assert get('weizmann', 'a', 'walk.zip', progress=False).new == ['walk.zip']
    got = get('weizmann', 'b', '.', progress=False)
    assert (got.new, len(got.missing), names('b/weizmann')[0]) == (['walk.zip', 'run.zip'], 8, 'run')
    assert get('chairs', 'c', Path('mine.tar'), progress=False).new == ['rendered_chairs.tar']
    assert {'walk.zip', 'run.zip', 'mine.tar'} < {*names()}  # what is yours stays


@pytest.mark.parametrize('set_name, source, words', [
    ('golf', 'nowhere.tar', ['nowhere.tar', 'no such file']), ('golf', '.', ['golf.tar.bz2', '--root']),
    ('golf', 'ftp://a/b.tar', ['ftp', 'http']), ('weizmann', 'mine.zip', ['mine.zip', 'walk.zip']),
    ('actors', None, ['actors', 'weizmann']), ('golf', 'mine.zip', ['mine.zip', 'not an archive'])])
def test_sources_that_cannot_be(set_name, source, words):
    Path('mine.zip').touch()
    complaint(lambda: get(set_name, 'sets', source, progress=False), *words)
    assert [n for n in names() if n != 'sets'] == ['mine.zip']


def test_what_is_there_is_left_alone(golf):
    Path('golf.tar.bz2').write_bytes(golf)
    Path('sets/golf').mkdir(parents=True)
    Path('sets/golf/mine.jpg').touch()
    got = get('golf', 'sets', 'golf.tar.bz2', progress=False)
    assert (got.new, got.there, names('sets')) == ([], ['golf.tar.bz2'], ['golf', 'golf/mine.jpg'])
    Path('file/golf').parent.mkdir()
    Path('file/golf').touch()
    complaint(lambda: get('golf', 'file', 'golf.tar.bz2', progress=False), 'file/golf', 'not a folder')


# ---- nvs data

def nvs(*args):
    done = CliRunner().invoke(data_commands.data_app, [str(a) for a in args])
    if not isinstance(done.exception, (NvsError, SystemExit, type(None))): raise done.exception
    return SimpleNamespace(out=done.output, error=str(done.exception or ''), code=done.exit_code)


def test_get_tells_what_came_and_what_next(server, chairs):
    server.files['/rendered_chairs.tar'] = chairs
    r = nvs('get', 'chairs', '--root', 'my sets', '--from', server.url + '/')
    words = ['into my sets/chairs', '8 clips, 1 static row, 8 transient rows', 'left out', 'image_003', '40x40 pixels',
             "nvs train chairs --root 'my sets/chairs' --set draw=820", 'export NVS_DATA=']
    assert not r.error and not [w for w in words if w not in r.out], r.out


def test_get_defaults_to_nvs_data(server, golf, monkeypatch):
    server.files['/golf.tar.bz2'] = golf
    assert 'nvs-data/golf' in nvs('get', 'golf', '--from', server.url + '/').out
    monkeypatch.setenv('NVS_DATA', str(Path('home/clips').absolute()))
    r = nvs('get', 'golf', '--from', server.url + '/', '--keep-archive')
    assert names('home/clips')[:2] == ['archives', 'archives/golf.tar.bz2'] and 'export' not in r.out


def test_interrupted_get_says_how_to_go_on(monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(archives, 'fetch', stop)
    with pytest.raises(KeyboardInterrupt, match='nvs-data; the same command goes on'):
        data_commands.get('golf')


def test_info_of_everything(weizmann):
    for a in ACTIONS[:4]: Path(f'{a}.zip').write_bytes(weizmann[f'/{a}.zip'])
    get('weizmann', 'sets', '.', progress=False)
    Path('sets/golf').mkdir()
    out = nvs('info', '--root', 'sets').out
    words = ['18 clips, 1 static row, 18 transient rows', '36 clips, 6 static rows, 6 transient rows', '60x48 pixels',
             'chair-cad   not in sets; nvs data get chairs', '36 clips, 9 static rows, 4 transient rows',
             'lena_run2 (lena does run in lena_run1.avi already)', 'sets/golf: no clips in it']
    assert not [w for w in words if w not in out], out
    table = {x.split()[0]: x.split()[1:] for x in out.splitlines() if x.strip() and x.split()[0] in ACTIONS}
    assert [*table] == ACTIONS and table['side'] == ['x']*9 and table['bend'] == ['.']*9 and '36 of the 90 cells' in out


def test_info_of_one_set(golf, monkeypatch):
    Path('golf.tar.bz2').write_bytes(golf)
    get('golf', 'sets', 'golf.tar.bz2', progress=False)
    for args in ('--root', 'sets'), ('--root', 'sets/golf'):
        assert '5 clips, 1 static row, 5 transient rows' in nvs('info', 'golf', *args).out
    monkeypatch.setenv('NVS_DATA', 'sets')
    assert '32x32 pixels' in nvs('info', 'golf').out and 'nvs data get weizmann' in nvs('info', 'weizmann').out
    assert 'give its folder' in nvs('info', 'folder').out
    assert 'no such folder' in nvs('info', 'golf', '--root', 'nowhere').error
    assert "choose one of chairs" in nvs('info', 'gulf').error


def test_bare_command_helps():
    r = nvs()
    assert r.code == 0 and 'get' in r.out and 'info' in r.out


def test_help_needs_no_torch():
    code = "import sys; import nvs_nb.data_commands; sys.exit(bool({'torch', 'numpy', 'matplotlib'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).resolve().parent.parent).returncode == 0
