"""From a server to files: downloads over a bad line, and archives that are not trusted.

All servers run in this process. Whatever goes wrong must be one `NvsError` that names the address or the file, and must
leave no folder that a reader could take for a dataset.
"""
import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import re
import resource
import shutil
import socket
import stat
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest

from nvs_nb.core import NvsError, write_json
from nvs_nb.data import download
from nvs_nb.data.download import ACTIONS, OFFICIAL, PEOPLE, Damaged, Gone, Limits, Truncated, extract, fetch, get
from nvs_nb.data.readers import find_sources
from PIL import Image
from test_cli import complaint as refused, done, nvs

SMALL = Limits(members=100, bytes=50e6)
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
        if 'raw' in habit: return self.wfile.write(habit['raw'])
        if 'serve' in habit: s.files[path], s.tags[path] = habit['serve'], {'ETag': '"another"'}
        data, tags = habit.get('data', s.files.get(path)), habit.get('tags', s.tags.get(path, {'ETag': '"one"'}))
        asked, condition = self.headers.get('Range'), self.headers.get('If-Range')
        start, stop, partial = 0, len(data or b''), False
        if asked and not habit.get('deaf') and (habit.get('rash') or condition in (None, *tags.values())):
            first, last = re.fullmatch(r'bytes=(\d+)-(\d*)', asked).groups()
            start, stop, partial = int(first), min(int(last) + 1, stop) if last else stop, True
        status = habit.get('status', 404 if data is None else 200)
        if status == 200 and partial: status = 416 if start >= len(data) else 206
        s.log.append((status, asked))
        self.send_response(status)
        if status == 302: self.send_header('Location', habit['to'])
        if status == 416: self.send_header('Content-Range', f'bytes */{len(data)}')
        body = data[start:stop] if status in (200, 206) else b'<html>so sorry</html>'
        if status == 206: self.send_header('Content-Range', habit.get('span', f'bytes {start}-{stop-1}/{len(data)}'))
        for t in {**tags, **habit.get('headers', {})}.items() if status in (200, 206) else (): self.send_header(*t)
        if not habit.get('mute'): self.send_header('Content-Length', str(len(body) + habit.get('lie', 0)))
        self.end_headers()
        self.wfile.write(body[:habit.get('hang up', len(body))])
        if 'more' in habit: self.wfile.write(habit['more'])


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    "An empty folder to work in, no proxy, no patience"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(download, 'PAUSE', .001)


@pytest.fixture
def server():
    with Server() as s:
        threading.Thread(target=s.serve_forever, args=[.01], daemon=True).start()
        yield s
        s.shutdown()


@pytest.fixture
def shop(server):
    "A server with one file"
    server.data, server.address = NOISE, f'{server.url}/a.tar'
    server.files['/a.tar'] = server.data
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
        for name, what in members:
            z.writestr(name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name), what, zipfile.ZIP_DEFLATED)
    return f.getvalue()


@pytest.fixture(scope='module')
def weizmann():
    "The ten zips: 93 files that are called like films, of which lena has two that run, walk and skip"
    zips = {}
    for action in ACTIONS:
        takes = {('lena', a): '12' for a in ('run', 'walk', 'skip')}
        names = [f'{p}_{action}{t}.avi' for p in PEOPLE for t in takes.get((p, action), ('',))]
        zips[f'/{action}.zip'] = zipped(*[(n, n.encode()) for n in names], ('Thumbs.db', b'x'))
    return zips


@pytest.fixture(scope='module')
def chairs():
    "Three models in two elevations of 8 sides"
    members = [('rendered_chairs/', tarfile.DIRTYPE), ('rendered_chairs/all_chair_names.mat', b'MATLAB')]
    for i in range(3):
        for n in range(16):
            name = f'image_{n:03d}_p{20 + 10*(n > 7):03d}_t{n % 8*45:03d}_r096.png'
            members.append((f'rendered_chairs/{i:032x}/renders/{name}', NOISE[1000*n:1000*n + 999]))
    return tar(*members)


def complaint(do, *words, kind=NvsError):
    "The one line of an error that names all of `words`"
    with pytest.raises(NvsError) as caught: do()
    line = str(caught.value)
    assert type(caught.value) is kind and '\n' not in line, repr(caught.value)
    assert not [w for w in words if str(w) not in line], line
    return line


def names(top='.'):
    "Every file and folder, relative"
    return sorted(p.relative_to(top).as_posix() for p in Path(top).rglob('*'))


def load(shop, **kw): return fetch(shop.address, Path('a.tar'), progress=False, **kw)


def unpack(name='x', suffixes=('.jpg',), limits=SMALL, **kw):
    return extract(name, 'films', suffixes, limits, progress=False, **kw)


# ---- downloads

def test_resumes_where_the_line_broke(shop):
    "All but the last piece is kept"
    shop.habits = [{'hang up': 100_000}, {'hang up': 50_000}]
    assert load(shop).read_bytes() == shop.data and names() == ['a.tar']
    starts = [int(re.search(r'\d+', asked)[0]) for _, asked in shop.log]
    assert [status for status, _ in shop.log] == [206, 206, 206]
    assert all(0 <= broke - start < download.CHUNK for broke, start in zip((0, 100_000, starts[1] + 50_000), starts))


def test_resumes_in_another_process(shop):
    "What a killed program left is enough: the part and its note"
    shop.habits = [{'hang up': 100_000}] + [{'status': 503}]*5
    complaint(lambda: load(shop), shop.address, '503', 'goes on')
    had = Path('a.tar.part').read_bytes()
    assert names() == ['a.tar.json', 'a.tar.part'] and had == shop.data[:len(had)] and len(had) > 80_000
    load(shop)
    assert shop.log[-1] == (206, f'bytes={len(had)}-')
    assert Path('a.tar').read_bytes() == shop.data and names() == ['a.tar']


def test_complete_is_not_fetched_again(shop):
    load(shop)
    load(shop)
    assert len(shop.log) == 1


@pytest.mark.parametrize('more', [b'', b'more'], ids=['complete', 'longer than the file'])
@pytest.mark.parametrize('told', [True, False], ids=['length known', 'length not known'])
def test_killed_before_the_last_rename(shop, more, told):
    Path('a.tar.part').write_bytes(shop.data + more)
    write_json('a.tar.json', dict(url=shop.address, tag='"one"', total=len(shop.data)*told))
    assert load(shop).read_bytes() == shop.data and names() == ['a.tar']
    assert [status for status, _ in shop.log] == ([206]*bool(more) if told else [416, 206][:1 + bool(more)])


NOTES = [b'', b'{', b'[' * 100_000, b'[]', b'null', b'7' * 5000, b'{"url": 1e999}', b'\xff', b'{"url": "U"}',
         *(json.dumps({'url': 'U', 'tag': '"one"', 'total': 9, **change}).encode() for change in (
             dict(tag=None), dict(tag='a\r\nb: c'), dict(tag='\u20ac'), dict(total='9'), dict(total=-1),
             dict(total=True), dict(total=10**400), dict(total=2.5), dict(url=[]), dict(url='http://elsewhere/a.tar')))]


@pytest.mark.parametrize('note', NOTES, ids=lambda x: repr(x[:30]))
def test_note_of_any_content(shop, note):
    "What a stranger, a full disk or another program left beside a part: the file is fetched anew"
    Path('a.tar.part').write_bytes(b'x'*7)
    Path('a.tar.json').write_bytes(note.replace(b'"U"', json.dumps(shop.address).encode()))
    assert load(shop).read_bytes() == shop.data and shop.log == [(206, 'bytes=0-')] and names() == ['a.tar']


@pytest.mark.parametrize('length', ['9'*401, str(2**63), '1e9', '-5', '0x10', '', ' '], ids=lambda x: x[:9])
@pytest.mark.parametrize('status', [200, 206])
def test_lengths_that_no_file_has(shop, length, status):
    "One line and nothing here; or the file, if the header says nothing"
    header = dict(headers={'Content-Length': length}, mute=True, deaf=True) if status == 200 else dict(
        span=f'bytes 0-299999/{length}')
    shop.habits = [header]*9
    try: assert load(shop, tries=2).read_bytes() == shop.data
    except NvsError as e: assert '\n' not in str(e) and shop.address in str(e) and not Path('a.tar').exists()
    else: assert len(length) < 9


def test_server_without_ranges_starts_over(shop):
    shop.habits = [{'hang up': 100_000}, {'deaf': True}]
    assert load(shop).read_bytes() == shop.data
    assert [status for status, _ in shop.log] == [206, 200]


@pytest.mark.parametrize('habit, answers', [({}, [206, 200]), ({'rash': True}, [206, 206, 206])],
                         ids=['if-range', 'if-range ignored'])
def test_file_changed_between_two_tries(shop, habit, answers):
    other = NOISE[::-1]
    shop.habits = [{'hang up': 100_000}, {'serve': other, **habit}]
    assert load(shop).read_bytes() == other and [status for status, _ in shop.log] == answers


@pytest.mark.parametrize('change', [0, 10_240], ids=['same', 'longer'])
def test_without_a_tag_the_length_must_agree(shop, change):
    shop.tags['/a.tar'] = {}
    assert load(shop, stop=100_000).stat().st_size == 100_000
    shop.files['/a.tar'] = bytes(change) + shop.data
    assert load(shop).read_bytes() == shop.files['/a.tar']
    assert [asked for _, asked in shop.log] == ['bytes=0-99999', 'bytes=100000-'] + ['bytes=0-']*bool(change)


def test_weak_tag_is_not_used(shop):
    shop.tags['/a.tar'] = {'ETag': 'W/"one"', 'Last-Modified': 'Mon, 01 Jan 2024 00:00:00 GMT'}
    shop.habits = [{'hang up': 100_000}]
    assert load(shop).read_bytes() == shop.data
    assert [status for status, _ in shop.log] == [206, 206]  # the server knows this date


def test_length_not_told(shop):
    shop.habits = [{'mute': True, 'deaf': True}]
    assert load(shop).read_bytes() == shop.data and names() == ['a.tar']


def test_length_is_a_lie(shop):
    "Too long: tries that bring nothing new end; a 416 tells the truth the next time"
    shop.habits = [{'lie': 99, 'deaf': True}]*9
    complaint(lambda: load(shop), shop.address, 'goes on')
    assert names() == ['a.tar.json', 'a.tar.part'] and len(shop.log) == 6
    shop.habits = []
    assert load(shop).read_bytes() == shop.data


@pytest.mark.parametrize('span', ['', 'bytes', 'bytes 0-9/10', 'bytes 77-99/300000', 'bytes x-y/z'])
def test_wrong_range_is_never_appended(shop, span):
    shop.habits = [{'hang up': 100_000}, {'span': span}]
    assert load(shop).read_bytes() == shop.data and shop.log[-1] == (206, 'bytes=0-')


def test_server_that_sends_without_end(shop):
    "The header says 300,000 bytes; without a header only `stop` ends it"
    shop.habits = [{'more': b'x'*100_000}, {'deaf': True, 'mute': True}]
    assert load(shop).read_bytes() == shop.data
    Path('a.tar').unlink()
    assert load(shop, stop=1000).stat().st_size == 1000 and names() == ['a.tar.json', 'a.tar.part']


def test_packed_by_a_server_that_means_well(shop):
    "An archive with `Content-Encoding` is stored as it is"
    shop.files['/a.tar'] = gzip.compress(b'many words'*1000)
    shop.habits = [{'headers': {'Content-Encoding': 'gzip'}}]
    assert load(shop).read_bytes() == shop.files['/a.tar']


def test_page_instead_of_file(shop):
    "Refused, and what is here is kept"
    page = {'data': b'<html>Welcome to our hotel', 'deaf': True, 'headers': {'Content-Type': 'text/html; charset=x'}}
    shop.habits = [page, {'hang up': 100_000}, page]
    complaint(lambda: load(shop), shop.address, 'web page')
    assert names() == []
    complaint(lambda: load(shop), shop.address, 'web page')
    load(shop)
    assert Path('a.tar').read_bytes() == shop.data and shop.log[-1][0] == 206 and shop.log[-1][1] != 'bytes=0-'


@pytest.mark.parametrize('status, tries, kind', [(404, 1, Gone), (410, 1, Gone), (403, 5, NvsError), (500, 5, NvsError),
                                                 (429, 5, NvsError)])
def test_refusals(shop, status, tries, kind):
    shop.habits = [{'status': status}]*9
    complaint(lambda: load(shop), shop.address, status, kind=kind)
    assert len(shop.log) == tries and names() == []
    if kind is NvsError: complaint(lambda: load(shop, tries=1), status)


@pytest.mark.parametrize('raw', [b'', b'SSH-2.0-OpenSSH\r\n', b'HTTP/1.1 200 OK\r\nContent-Length: 9z\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nContent-Length: ' + b'9'*5000 + b'\r\n\r\n', b'\x1b[2J\n\n'],
    ids=['nothing', 'ssh', 'no number', 'long number', 'escapes'])
def test_nonsense_is_one_line(shop, raw):
    shop.habits = [{'raw': raw}]*9
    assert complaint(lambda: load(shop, tries=2), shop.address).isprintable()
    assert not Path('a.tar').exists()


def test_redirected(shop):
    shop.habits = [{'status': 302, 'to': shop.address}]
    fetch(f'{shop.url}/b.tar', Path('b.tar'), progress=False)
    assert Path('b.tar').read_bytes() == shop.data


@pytest.mark.parametrize('to', ['file:///etc/passwd', 'ftp://a/b', 'http://[::1', 'data:,x', '/a.tar', '\x01'])
def test_redirected_to_no_place(shop, to):
    "Elsewhere than to the web, or in circles"
    Path('secret').touch()
    shop.habits = [{'status': 302, 'to': to}]*99
    assert complaint(lambda: load(shop, tries=1), shop.address).isprintable()
    assert names() == ['secret']


def test_unreachable():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{s.getsockname()[1]}/a.tar'
    complaint(lambda: fetch(url, Path('a.tar'), progress=False), url, 'refused')


@pytest.mark.parametrize('url', ['http://[::1/a.tar', 'http://127.0.0.1:port/a.tar', 'a.tar', 'ftp://a/b.tar'])
def test_no_address(url): complaint(lambda: fetch(url, Path('a.tar'), progress=False), url, 'no address')


def test_published_hash(shop):
    right = hashlib.sha256(shop.data).hexdigest()
    complaint(lambda: load(shop, sha256='0'*64), shop.address, '0'*64)
    assert names() == []
    assert load(shop, sha256=right).read_bytes() == shop.data
    load(shop, sha256=right)
    assert len(shop.log) == 2
    Path('a.tar').write_bytes(b'damaged')
    assert load(shop, sha256=right).read_bytes() == shop.data


def test_disk_too_small(shop, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    complaint(lambda: load(shop), '0.00 GB are free')
    assert names() == []


def test_disk_fills_up(shop):
    "What was written stays, and the download goes on when there is room"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try: complaint(lambda: load(shop), 'cannot write', 'a.tar')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    had = Path('a.tar.part').stat().st_size
    assert load(shop).read_bytes() == shop.data and shop.log[-1] == (206, f'bytes={had}-') and 0 < had <= 150_000


def test_two_programs_at_once(shop, monkeypatch):
    "The one that finds bytes of another adds none; nothing but part and note would be left of one that is killed"
    def note_and_interrupt(path, note):
        assert names() == []
        write_json(path, note)
        Path('a.tar.part').write_bytes(b'of another program')
    monkeypatch.setattr(download, 'write_json', note_and_interrupt)
    complaint(lambda: load(shop), 'a.tar.part', 'another program')
    assert Path('a.tar.part').read_bytes() == b'of another program'


def test_folder_not_writable(shop):
    Path('file').touch()
    complaint(lambda: fetch(shop.address, Path('file/a.tar'), progress=False), 'cannot write file/a.tar')


# ---- archives that are not trusted

def hostile_tars():
    LINK = tarfile.SYMTYPE
    yield 'climbs', [('a/../../b.jpg', b'')], 'outside'
    yield 'climbs first', [('../b.txt', b'')], 'outside'
    yield 'symlink', [('b.jpg', LINK, '/etc/passwd')], 'link'
    yield 'through a link', [('b', LINK, '..'), ('b/c.jpg', b'')], 'link'
    yield 'hard link', [('b.jpg', tarfile.LNKTYPE, '../../secret')], 'link'
    yield 'device', [('b.jpg', tarfile.BLKTYPE, '')], 'special'
    yield 'pipe', [('b', tarfile.FIFOTYPE, '')], 'special'
    yield 'too many', [(f'{i}', b'') for i in range(100)], 'more than 100 members'
    yield 'long name', [('a/'*1000 + 'b.jpg', b'')], 'a name of 1,000'


@pytest.mark.parametrize('members, word', [pytest.param(m, w, id=i) for i, m, w in hostile_tars()])
def test_hostile_tar(members, word):
    "The first file is honest; nothing of it is left"
    Path('x').write_bytes(tar(('a.jpg', b'aa'), *members))
    complaint(unpack, 'x: ', word, 'refused')
    assert names() == ['x']


@pytest.mark.parametrize('member, word', [
    ('../b.jpg', 'outside'), ('a/../../b.jpg', 'outside'), ('a.jpg', 'File exists'), ('a.jpg/b.jpg', 'a.jpg')])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_hostile_zip_and_double_names(member, word):
    Path('x').write_bytes(zipped(('a.jpg', b'aa'), (member, b'/etc/passwd')))
    complaint(unpack, 'x: ', word)
    Path('x').write_bytes(tar(('a.jpg', b'aa'), (member, b'/etc/passwd')))
    complaint(unpack, 'x: ', word)
    assert names() == ['x']


@pytest.mark.parametrize('pack', [tar, zipped])
@pytest.mark.parametrize('name, told', [
    ('', ''), ('.', ''), ('/', ''), ('..', 'outside'), ('b'*300 + '.jpg', 'too long'), ('b'*5000 + '.jpg', '1,000'),
    ('b/'*400 + 'c.jpg', ''), ('b/'*3000 + 'c.jpg', '1,000'), ('b//./c.jpg', ''), ('\x1b[2J.jpg', '')],
    ids=lambda x: x[:9])
def test_names_of_members(pack, name, told):
    "Without a name, too long, or nested deeply: refused, or what is good stays inside"
    Path('x').write_bytes(pack(('a.jpg', b'aa'), (name, b'bb')))
    if told: complaint(unpack, 'x: ', told)
    else: assert unpack() == 1 + name.endswith('.jpg') and Path('films/a.jpg').exists()
    assert {n.split('/')[0] for n in names()} <= {'x', 'films'}


def test_same_name_from_two_folders():
    Path('x').write_bytes(zipped(('a/a.jpg', b'aa'), ('b/a.jpg', b'bb')))
    complaint(lambda: unpack(flat=True), 'File exists')


def unix(name, mode):
    "A zip entry of a kind that only Unix has"
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize('data', [
    tar(('a.jpg', b'aa'), ('/tmp/b.jpg', b'bb'), ('c.jpg', tarfile.SYMTYPE, 'a.jpg'),
        ('d/e.jpg', tarfile.LNKTYPE, 'a.jpg')),
    zipped(('a.jpg', b'aa'), ('/tmp/b.jpg', b'bb'), (unix('c.jpg', stat.S_IFLNK | 0o777), b'/etc/passwd'),
           (unix('d.jpg', stat.S_IFCHR), b''))], ids=['tar', 'zip'])
def test_links_are_left_out_and_all_stays_inside(data):
    Path('x').write_bytes(data)
    assert unpack() == 2 and names() == ['films', 'films/a.jpg', 'films/tmp', 'films/tmp/b.jpg', 'x']
    assert not any(p.is_symlink() for p in Path('films').rglob('*'))


def test_name_that_ends_early():
    "What follows a zero byte is not shown by everybody"
    Path('x').write_bytes(zipped(('a.jpg', b'aa'), ('bXcc.jpg', b'bb')).replace(b'bXcc.jpg', b'b\0cc.jpg'))
    assert unpack() == 1 and names('films') == ['a.jpg']


def test_encrypted_zip():
    data = bytearray(zipped(('a.jpg', b'aa')))
    for head, flags in (b'PK\3\4', 6), (b'PK\1\2', 8): data[data.index(head) + flags] |= 1
    Path('x').write_bytes(data)
    complaint(unpack, 'x', 'encrypted', kind=Damaged)
    assert names() == ['x']


PACKERS = {'bz2': lambda *m: tar(*m, mode='w:bz2'), 'gz': lambda *m: tar(*m, mode='w:gz'),
           'xz': lambda *m: tar(*m, mode='w:xz', preset=0), 'zip': zipped}
ZEROS = bytes(2**24 + 2**20)


@pytest.mark.parametrize('kind', PACKERS)
def test_bombs(kind):
    "Packed 100 times smaller, in a file that is taken or not"
    for name in 'a.jpg', 'b.txt':
        Path('x').write_bytes(PACKERS[kind](('z.jpg', b'zz'), (name, ZEROS)))
        complaint(unpack, 'x', 'unpacks to more than 0.0167772 GB', 'refused')
        assert names() == ['x']


@pytest.mark.parametrize('kind', ['tar', *PACKERS])
def test_too_large(kind):
    Path('x').write_bytes((tar if kind == 'tar' else PACKERS[kind])(('a.jpg', NOISE), ('b.jpg', NOISE)))
    complaint(lambda: unpack(limits=Limits(members=9, bytes=4e5)), 'x', 'more than 0.0004 GB', 'refused')
    assert names() == ['x']


@pytest.mark.parametrize('form', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_bomb_in_a_header(form):
    "A name of 17 MB is packed in 17 KB; it must not be read into memory"
    Path('x').write_bytes(tar(('a.jpg', b'aa'), ('b'*(2**24 + 2**20), b'bb'), mode='w:gz', format=form))
    complaint(unpack, 'x', 'more comes than the headers announce', 'refused')


def test_global_headers_do_not_pile_up():
    "Seventy headers for all files that follow, each of 200 KB"
    with tarfile.open('x', 'w:gz', format=tarfile.PAX_FORMAT, compresslevel=1) as t:
        for i in range(70):
            t.fileobj.write(tarfile.TarInfo.create_pax_global_header({f'key{i}': 'x'*(200_000 + i)}))
            t.addfile(tarfile.TarInfo(f'{i}.txt'))
        t.addfile(tarfile.TarInfo('a.jpg'))
    tracemalloc.start()
    try:
        assert unpack() == 1 and tracemalloc.get_traced_memory()[1] < 6e6
    finally: tracemalloc.stop()


def test_sizes_in_headers_are_lies():
    "Larger than the archive, negative: an error, and no endless loop"
    for size in 2**70, -512, -2**40:
        data = bytearray(tar(('a.jpg', b'aa'), ('b.jpg', b'bb')))
        field = (size.to_bytes(12, 'big', signed=True) if size < 0 else b'\x80' + size.to_bytes(11, 'big'))
        data[1024 + 124:1024 + 136] = field
        data[1024 + 148:1024 + 156] = b' '*8
        data[1024 + 148:1024 + 156] = b'%06o\0 ' % sum(data[1024:1536])
        Path('x').write_bytes(data)
        complaint(unpack, 'x: ', kind=NvsError if size > 0 else Damaged)
        assert names() == ['x']


def test_zip_that_tells_too_small_a_size():
    data = bytearray(zipped(('a.jpg', b'a'*1000)))
    for head, at in (b'PK\3\4', 22), (b'PK\1\2', 24):
        i = data.index(head) + at
        data[i:i + 4] = (10).to_bytes(4, 'little')
    Path('x').write_bytes(data)
    complaint(unpack, 'x: damaged', kind=Damaged)


def test_entry_that_vanishes():
    "A damaged header in the middle ends the listing of `tarfile` in silence"
    data = bytearray(tar(('a.jpg', b'aa'), ('b.jpg', b'bb')))
    data[1024 + 150] ^= 1  # in the sum over the second header
    Path('x').write_bytes(data)
    complaint(unpack, 'x: damaged', kind=Damaged)


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
    assert unpack() == 2 and names('films') == ['top', 'top/a', 'top/a/1.jpg', 'top/b.JPG']
    assert Path('films/top/a/1.jpg').read_bytes() == NOISE[:5000]


@pytest.mark.parametrize('kind', KINDS)
def test_cut_short_anywhere(kind):
    members = [(f'{i}.jpg', NOISE[1500*i:1500*(i + 1)]) for i in range(3)]
    whole = pack(kind, members)
    end = 3*2048 if kind == 'tar' else len(whole)  # the empty blocks after a plain tar may be cut
    cuts = [*range(512, end, 509), *range(512, end, 512)]
    for cut in cuts:
        Path('x').write_bytes(whole[:cut])
        with pytest.raises(Truncated, match='^x: only the beginning'): unpack()
    assert names() == ['x'] and len(cuts) > 10


@pytest.mark.parametrize('kind', ['tar', 'gz', 'bz2'])
def test_whole_files_of_a_beginning(kind):
    "Never half a file"
    rng = np.random.default_rng(2)
    members = [(f'{i}.jpg', rng.bytes(400_000)) for i in range(5)]  # bzip2 has blocks of 900,000 bytes
    whole = pack(kind, members)
    for cut in range(1_000_001, len(whole), 400_011):
        Path('x').write_bytes(whole[:cut])
        n = unpack(cut=True)
        assert 0 < n < 5 and names('films') == [f'{i}.jpg' for i in range(n)]
        assert all(Path(f'films/{name}').read_bytes() == data for name, data in members[:n])
        shutil.rmtree('films')


@pytest.mark.parametrize('kind', KINDS)
def test_any_damage_is_one_line(kind):
    "Flipped bytes: an error that names the file, or, where a format has no checksums, other bytes in the right place"
    members, rng = [(f'a/{i}.jpg', NOISE[700*i:700*(i + 1)]) for i in range(3)], np.random.default_rng(1)
    whole, refused = pack(kind, members), 0
    for _ in range(40):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=2)] ^= rng.integers(1, 256, 2, np.uint8)
        Path('x').write_bytes(data.tobytes())
        try: unpack()
        except NvsError as e:
            refused += 1
            assert 'x' in str(e) and names() == ['x']
        shutil.rmtree('films', ignore_errors=True)
    assert refused > (5 if kind == 'tar' else 20)


@pytest.mark.parametrize('data, word', [
    (b'', 'no archive'), (b'<html>' + bytes(600), 'no archive'), (bytes(2000), 'no (.jpg in it|archive)'),
    (gzip.compress(b'no tar'*999), 'damaged'), (zipped(('a.txt', b'')), 'no .jpg in it')],
    ids=['empty', 'page', 'zeros', 'no tar', 'no film'])
def test_not_an_archive_of_films(data, word):
    Path('x').write_bytes(data)
    with pytest.raises(NvsError, match=f'^x: .*{word}'): unpack()
    assert names() == ['x']


def test_no_such_archive(): complaint(unpack, 'x: ', 'No such file')


@pytest.mark.parametrize('what', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_interrupted_leaves_nothing_and_goes_on(monkeypatch, what):
    def stop(source, out, n):
        out.write(b'half')
        raise what
    Path('x').write_bytes(tar(('a.jpg', b'aa')))
    with monkeypatch.context() as m:
        m.setattr(download.shutil, 'copyfileobj', stop)
        with pytest.raises((KeyboardInterrupt, NvsError)) as e: unpack()
    assert isinstance(what, KeyboardInterrupt) or str(e.value) == 'x: unpacking: No space left on device'
    assert names() == ['x'] and unpack() == 1


def test_killed_run_is_cleaned_up():
    Path('.films.part/old').mkdir(parents=True)
    Path('x').write_bytes(tar(('a.jpg', b'aa')))
    unpack()
    assert names() == ['films', 'films/a.jpg', 'x']


def test_folder_that_is_there_stays():
    Path('films').mkdir()
    Path('films/mine.jpg').touch()
    Path('x').write_bytes(tar(('a.jpg', b'aa')))
    complaint(unpack, 'x: films: Directory not empty')
    assert names() == ['films', 'films/mine.jpg', 'x']


def test_old_python(monkeypatch):
    monkeypatch.delattr(tarfile, 'data_filter')
    complaint(unpack, 'x: ', '3.10.12')


# ---- from a server to a dataset

def bring(name, root='sets', source=None, **kw): return get(name, root, source, progress=False, **kw)


def test_weizmann(server, weizmann):
    server.files = weizmann
    got = bring('weizmann', source=server.url)
    assert (got.new, got.there, got.missing) == ([f'{a}.zip' for a in ACTIONS], [], [])
    assert len(names('sets')) == 93 + 11  # no archive, nothing else
    assert len(find_sources('weizmann', got.folder)[0]) == 93


def test_weizmann_without_skip_and_then_with(server, weizmann):
    server.files = {k: v for k, v in weizmann.items() if k != '/skip.zip'}
    got = bring('weizmann', source=f'{server.url}/')
    assert got.missing == ['skip.zip'] and len(got.new) == 9 and len(names('sets')) == 83 + 10
    server.files, server.log = weizmann, []
    again = bring('weizmann', source=server.url)
    assert (again.new, len(again.there), len(server.log)) == (['skip.zip'], 9, 1)


def test_nothing_there(server): complaint(lambda: bring('weizmann', source=server.url), 'skip.zip', '--from')


def test_chairs_over_a_bad_line(server, chairs):
    server.files['/rendered_chairs.tar'], server.habits = chairs, [{'hang up': 20_000}, {'hang up': 20_000}]
    got = bring('chairs', source=server.url + '/', keep=True)
    assert len(find_sources('chair-cad', got.folder)[0]) == 3 and len(names('sets/chairs')) == 48 + 7
    assert [n for n in names('sets/archives') if n[0] != '.'] == ['rendered_chairs.tar']
    assert Path('sets/archives/rendered_chairs.tar').read_bytes() == chairs


def test_only_the_beginning(server):
    "Whole films of a download that was stopped; the part is kept if asked for, and goes on later"
    server.files['/golf.tar.bz2'] = tar(*[(f'{i}.jpg', NOISE[i*9000:(i + 1)*9000]) for i in range(30)], mode='w:gz')
    complaint(lambda: bring('golf', source=server.url + '/', first=1e-6), 'only the beginning', 'a larger --first')
    bring('golf', source=server.url + '/', first=2e-4, keep=True)
    films = names('sets/golf')
    assert 15 < len(films) < 25 and server.log == [(206, 'bytes=0-999'), (206, 'bytes=1000-199999')]
    assert all(Path('sets/golf', f).read_bytes() == NOISE[int(f[:-4])*9000:][:9000] for f in films)
    shutil.rmtree('sets/golf')
    bring('golf', source=server.url + '/')
    assert len(names('sets')) == 31 and server.log[-1] == (206, 'bytes=200000-')
    for first in -1, float('nan'): complaint(lambda: bring('golf', first=first), '--first')


def test_damaged_download_is_fetched_again(server, chairs):
    "A server that lies about a shorter length: only unpacking can tell"
    server.files['/rendered_chairs.tar'], server.habits = chairs, [{'data': chairs[:len(chairs)//2]}]
    complaint(lambda: bring('chairs', source=server.url + '/'), 'only the beginning', 'fetches it again')
    assert names('sets') == []
    assert bring('chairs', source=server.url + '/').new == ['rendered_chairs.tar']


def test_interrupted_unpacking_downloads_nothing_again(server, chairs, monkeypatch):
    def stop(*_): raise KeyboardInterrupt
    server.files['/rendered_chairs.tar'] = chairs
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(download.shutil, 'copyfileobj', stop)
        bring('chairs', source=server.url + '/')
    assert bring('chairs', source=server.url + '/').new == ['rendered_chairs.tar'] and len(server.log) == 1


def test_hostile_download_leaves_no_set(server):
    server.files['/golf.tar.bz2'] = tar(('a.jpg', b'aa'), ('../b.jpg', b''))
    complaint(lambda: bring('golf', source=server.url + '/'), 'golf.tar.bz2', 'outside')
    assert not Path('sets/golf').exists() and not Path('sets/b.jpg').exists()


def test_official_table():
    assert [len(o.urls) for o in OFFICIAL.values()] == [1, 10, 1]
    assert all(re.fullmatch(r'https?://.+/[\w.]+', url) for o in OFFICIAL.values() for url in o.urls)


def test_from_files_and_folders(weizmann, chairs):
    for name in 'walk', 'run': Path(f'{name}.zip').write_bytes(weizmann[f'/{name}.zip'])
    Path('mine.tar').write_bytes(chairs)
    assert bring('weizmann', 'a', 'walk.zip').new == ['walk.zip']
    got = bring('weizmann', 'b', '.')
    assert (got.new, len(got.missing), names('b/weizmann')[0]) == (['walk.zip', 'run.zip'], 8, 'run')
    assert bring('chairs', 'c', Path('mine.tar')).new == ['rendered_chairs.tar']
    assert {'walk.zip', 'run.zip', 'mine.tar'} < {*names()}  # what is yours stays


@pytest.mark.parametrize('name, source, words', [
    ('golf', 'nowhere.tar', ['nowhere.tar', 'file, or folder']), ('golf', '.', ['golf.tar.bz2', '--root']),
    ('golf', 'ftp://a/b.tar', ['ftp', 'http']), ('weizmann', 'mine.zip', ['mine.zip', 'walk.zip']),
    ('actors', None, ['actors', 'weizmann']), ('golf', 'mine.zip', ['mine.zip', 'no archive'])])
def test_sources_that_cannot_be(name, source, words):
    Path('mine.zip').touch()
    with pytest.raises(NvsError) as e: bring(name, source=source)
    assert not [w for w in words if w not in str(e.value)] and '\n' not in str(e.value)
    assert [n for n in names() if n != 'sets'] == ['mine.zip']


def test_file_where_a_folder_should_be():
    Path('sets').mkdir()
    Path('sets/golf').touch()
    complaint(lambda: bring('golf', source='http://127.0.0.1:9/golf.tar.bz2'), 'sets/golf', 'not a folder')


# ---- nvs data

def picture(w=40, h=40, kind='png'):
    Image.new('RGB', (w, h), 'red').save(f := io.BytesIO(), kind)
    return f.getvalue()


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    "An AVI of 60x48 pixels"
    import imageio.v3 as iio
    path = tmp_path_factory.mktemp('film') / 'x.avi'
    iio.imwrite(path, np.zeros((20, 48, 60, 3), np.uint8), plugin='pyav', codec='mpeg4')
    return path.read_bytes()


def real_weizmann(film):
    takes = {('lena', a): '12' for a in ('run', 'walk', 'skip')}
    return {a: zipped(*[(f'{p}_{a}{t}.avi', film) for p in PEOPLE for t in takes.get((p, a), ('',))])
            for a in ACTIONS[:4]}


def real_golf(): return tar(*[(f'golf/{i}.jpg', picture(32, 128, 'jpeg')) for i in range(5)], mode='w:bz2')


def real_chairs():
    names = [(i, n) for i in range(3) for n in range(16) if (i, n) != (1, 3)]  # a side of one is missing
    views = [f'image_{n:03d}_p{20 + 10*(n > 7):03d}_t{n % 8*45:03d}_r096.png' for n in range(16)]
    return tar(*[(f'rendered_chairs/{i:032x}/renders/{views[n]}', picture()) for i, n in names])


def test_get_tells_what_came_and_what_next(server):
    server.files['/rendered_chairs.tar'] = real_chairs()
    r = done('data', 'get', 'chairs', '--root', 'my sets', '--from', server.url + '/')
    words = ['into my sets/chairs', '1 static code', 'transient paths', 'left out', 'image_003', '40x40',
             "nvs train chairs --root 'my sets/chairs'", 'export NVS_DATA=']
    assert not [w for w in words if w not in r.out], r.out


def test_get_defaults_to_nvs_data(server, monkeypatch):
    server.files['/golf.tar.bz2'] = real_golf()
    assert 'nvs-data/golf' in done('data', 'get', 'golf', '--from', server.url + '/').out
    monkeypatch.setenv('NVS_DATA', str(Path('home/clips').absolute()))
    r = done('data', 'get', 'golf', '--from', server.url + '/', '--keep-archive')
    assert Path('home/clips/archives/golf.tar.bz2').exists() and 'export' not in r.out


def test_interrupted_get_says_how_to_go_on(monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(download, 'fetch', stop)
    refused(nvs('data', 'get', 'golf'), 'nvs-data; the same command goes on', code=130)


def test_info_of_everything(film):
    for a, z in real_weizmann(film).items(): Path(f'{a}.zip').write_bytes(z)
    get('weizmann', 'sets', '.', progress=False)
    Path('sets/golf').mkdir()
    out = done('data', 'info', '--root', 'sets').out
    words = ['18 clips, 1 static code, 18 transient paths', '36 clips, 6 static codes, 6 transient paths',
             '60x48', 'chair-cad   not in sets; nvs data get chairs',
             '36 clips, 9 static codes, 4 transient paths', 'lena_run2: lena does run in lena_run1.avi already',
             'sets/golf: no clips in it']
    assert not [w for w in words if w not in out], out
    table = {x.split()[0]: x.split()[1:] for x in out.splitlines() if x.strip() and x.split()[0] in ACTIONS}
    assert [*table] == ACTIONS and table['side'] == ['x']*9 and table['bend'] == ['.']*9 and '36 of the 90 cells' in out


def test_info_of_one_dataset(monkeypatch):
    Path('golf.tar.bz2').write_bytes(real_golf())
    get('golf', 'sets', 'golf.tar.bz2', progress=False)
    for args in ('--root', 'sets'), ('--root', 'sets/golf'):
        assert '5 clips, 1 static code, 5 transient paths' in done('data', 'info', 'golf', *args).out
    monkeypatch.setenv('NVS_DATA', 'sets')
    assert '32x32' in done('data', 'info', 'golf').out
    assert 'nvs data get weizmann' in done('data', 'info', 'weizmann').out
    assert 'give its folder' in done('data', 'info', 'folder').out
    refused(nvs('data', 'info', 'golf', '--root', 'nowhere'), 'no such folder')
    refused(nvs('data', 'info', 'gulf'), 'did you mean golf?')


def test_bare_command_helps():
    r = done('data')
    assert 'get' in r.out and 'info' in r.out
