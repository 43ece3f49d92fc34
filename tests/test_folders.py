"Folders as they are: what systems and we ourselves put there, names of any kind, damage, and what the cache keeps."
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import nvs_nb.data.readers as readers
from nvs_nb import cli
from nvs_nb.config import make_config
from nvs_nb.core import NvsError, made_in, note_made, printable
from nvs_nb.data.clips import as_pattern, choose, load_clips, load_set, matching
from nvs_nb.data.readers import cache_entries, find, find_sources, measure, read_clips, tile_aspect
from nvs_nb.data.frames import Window
from nvs_nb.data.synthetic import actor
from nvs_nb.evaluation.tables import Section, Table, code, inline, literal, md_table, text_table, write_pages

FILM = actor(0, 0, np.arange(8) / 8, 32)


def film(path, frames=FILM):
    "A film that needs no encoder"
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, frames)
    first.save(path, format='GIF', save_all=True, append_images=others, duration=80)
    return path


def text(path, content='x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def root(tmp_path):
    film(tmp_path / 'root/a.gif')
    return tmp_path / 'root'


@pytest.fixture
def load(tmp_path):
    return lambda root, **kw: load_set('folder', root, **{**dict(size=32, frames=4, cache=tmp_path / 'cache'), **kw})


# ---------------------------------------------------------------- what is no clip
@pytest.mark.parametrize('path', [
    '$RECYCLE.BIN/S-1/b.gif', 'lost+found/b.gif', '@eaDir/b.gif/x.jpg', '__MACOSX/b.gif', '._b.gif', '.Trashes/b.gif',
    'System Volume Information/b.gif', 'sub/#recycle/b.gif', 'Thumbs.db', 'sub/desktop.ini', 'found.002/b.gif',
    '$WINDOWS.~BT/b.gif', 'sub/@Transcode/b.gif', 'M4ROOT/THMBNL/b.gif', 'Icon\r'])
def test_what_systems_leave(path, root, load):
    film(root / path)
    clips = load(root)
    assert (clips.names, clips.skipped) == (['a'], [])


@pytest.mark.parametrize('mark', ['checkpoint.pt', 'metrics.jsonl', '.lock'])
def test_runs_are_no_clips(mark, root, load):
    run = root / 'runs/one'
    film(run / 'samples/b.gif'), text(run / 'config.json'), text(run / mark)
    film(root / 'samples/c.gif'), film(root / 'generated/d.gif')  # names of the user's own
    assert load(root).names == ['a', 'generated_d', 'samples_c']
    with pytest.raises(NvsError, match='one: the folder of a run'): load(run)


def test_what_we_made_is_no_clip(root, load):
    write_pages(root / 'page', 'title', ['text'], [Section('s', [], dict(x=1))])
    film(root / 'made/b.gif'), note_made(root / 'made', ['b.gif'])
    film(root / 'made/mine.gif'), film(root / 'c.gif'), note_made(root, ['c.gif'])
    clips = load(root)
    assert (clips.names, clips.skipped) == (['a', 'made_mine'], [])
    assert made_in(root / 'page') >= {'report.html'}
    note_made(root, ['d.gif'])
    assert made_in(root) == {'c.gif', 'd.gif'}
    one = ['generate', 'pretrained', '--format', 'gif', '--clip', load_set('chairs', size=32, frames=1).names[0]]
    assert cli.main([*one, '--out', str(root / 'new')]) == 0
    assert load(root).names == ['a', 'made_mine']
    first = next((root / 'new').glob('*.gif')).name
    shutil.copy(root / 'a.gif', root / first)
    assert cli.main([*one, '--out', str(root)]) == 2  # never over a clip
    assert sorted(p.name for p in root.glob('*.gif')) == sorted(['a.gif', 'c.gif', first])


def test_links(root, tmp_path, load):
    other = film(tmp_path / 'other/x.gif').parent
    (root / 'sub').mkdir()
    for link in '2', '1', 'sub/3': (root / link).symlink_to(other)
    (root / 'up').symlink_to(tmp_path), (root / 'sub/self').symlink_to(root), (root / 'latest').symlink_to('gone')
    (root / 'old.log').symlink_to('gone')
    assert load(root).names == ['1_x', 'a'] and load(root).skipped == ['latest: a link to nowhere']
    (root / 'b.gif').symlink_to('gone.gif')
    with pytest.warns(UserWarning, match='1 of 3 clips left out: b.gif: cannot be decoded'): load(root)


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
@pytest.mark.parametrize('reader, name', [('folder', 'b.gif'), ('folder', 'sub/3.png'), ('golf', 'b.png'),
                                          ('weizmann', 'walk/b.png')])
def test_a_pipe_is_not_waited_for(reader, name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    for i in range(3): Image.fromarray(FILM[i]).save(tmp_path / f'{name[:-5]}{i}.png')
    with pytest.raises(NvsError, match=f'{name}: not a'): load_set(reader, tmp_path, 32, 4, cache=tmp_path / 'cache')


def test_unknown_files_are_counted(root, load):
    for name in 'a.xyz', 'b.XYZ', 'README', 'c.txt': text(root / name)
    told = ['1 file without a suffix: not read', '1 file .txt: not read', '2 files .xyz: not read']
    assert load(root).skipped == told
    (root / 'a.gif').unlink()
    for reader in 'folder', 'golf':
        with pytest.raises(NvsError, match=r'no clips in it \(1 .*; 2 files \.xyz: not read\); expected'):
            load_set(reader, root, 32, 4, cache=False)


def test_bad_files_are_left_out_and_told(root, load, tmp_path, capsys):
    film(root / 'short.gif', FILM[:3]), text(root / 'page.mp4', '<html>'), text(root / 'empty.gif', '')
    Image.fromarray(FILM[0]).save(root / 'loose.png')
    for i in range(2):  # also from the cache
        with pytest.warns(UserWarning, match='2 of 4 clips left out: empty.gif: .*empty.*; page.mp4'):
            c = load(root)
        assert c.names == ['a'] and [line.split(':')[0] for line in c.skipped] == [
            'empty.gif', 'page.mp4', 'short', '1 picture in the folder itself (loose.png, ...)']
    (root / 'a.gif').unlink()
    with pytest.raises(NvsError, match='none of its 4 clips can be used; empty.gif: .*; page.mp4: .*; short: 3 frames'):
        load(root)
    film(root / 'a.gif'), film(root / 'long.gif', np.concatenate([FILM, FILM[-2::-1]]))
    assert cli.main(['data', 'info', 'folder', '--root', str(root)]) == 0
    told = ' '.join(capsys.readouterr().out.split())
    assert 'clips 3 clips' in told and 'frames 3 to 15, median 8 pixels 32x32 left out 3: empty.gif' in told
    assert 'page.mp4: cannot be decoded' in told


def test_measures(tmp_path):
    Image.fromarray(np.concatenate(FILM, 1)).save(tmp_path / 's.png')
    (tmp_path / 'walk').mkdir(), shutil.copy(tmp_path / 's.png', tmp_path / 'walk/ann.png')
    assert [measure(s) for s in find_sources('weizmann', tmp_path)[0] if not s.why_not] == [(8, (32, 32))]
    (tmp_path / 's.png').unlink(), (tmp_path / 'walk/ann.png').unlink()
    for i, f in enumerate(FILM): Image.fromarray(f).save(tmp_path / f'walk/{i}.png')
    assert [measure(s) for s in find_sources('folder', tmp_path)[0]] == [(8, (32, 32))]
    for f in (tmp_path / 'walk').iterdir(): Image.fromarray(FILM[0, ..., 0].astype(np.uint16)).save(f)
    with pytest.raises(NvsError, match='0.png: deep pixels'): measure(find_sources('folder', tmp_path)[0][0])


@pytest.mark.parametrize('wide, counts, want', [
    (40, (8, 8, 8), 40), (32, (5, 7, 8), 32), (24, (8, 8), 24), (32, (5,), 32), (40, (4, 8), 40)])
def test_strips_of_any_width(wide, counts, want, tmp_path):
    rng = np.random.default_rng(0)
    for i, n in enumerate(counts):  # a still picture, in which a little changes
        still = rng.integers(0, 200, (32, wide, 3))
        frames = [(still + rng.integers(0, 20, still.shape)).astype(np.uint8) for _ in range(n)]
        Image.fromarray(np.concatenate(frames, 1)).save(tmp_path / f'{i}.png')
    assert tile_aspect(sorted(tmp_path.iterdir())) * 32 == want


def test_lengths_of_the_films(root, load):
    "Known also from the cache, and with some of the clips"
    film(root / 'b.gif', np.concatenate([FILM, FILM])), film(root / 'short.gif', FILM[:3])
    for i in range(2):
        clips = load(root, window='even')
        assert (clips.names, clips.lengths) == (['a', 'b'], [8, 16])
    assert choose(clips, keep='b').lengths == clips.with_ids('clip').lengths[1:] == [16]
    assert (clips.frames[1] == load(root, window='even', only=['b']).frames).all() and load_set('actors').lengths is None
    first, last = (np.abs(clips.frames[0, i].astype(int) - FILM[j]).mean() for i, j in ((0, 0), (-1, -1)))
    assert max(first, last) < 2 < np.abs(clips.frames[0, -1].astype(int) - FILM[3]).mean()


def test_one_name_twice(root, load):
    film(root / 'a.webp'), film(root / 'b/c.gif'), film(root / 'b_c.gif'), film(root / 'd.gif')
    clips = load(root)
    assert clips.names == ['a.gif', 'a.webp', 'b/c.gif', 'b_c.gif', 'd'] and clips.transient_names == clips.names


# ---------------------------------------------------------------- names
ODD = 'x[1]', 'x1', 'a,b', 'a', 'b', 'Walk, slowly [dQw4]', '*', 'back\\slash', 'e\u0301t\u00e9', '~$&<b>'


@pytest.mark.parametrize('name', ODD)
def test_every_name_can_be_named(name):
    for pattern in name, as_pattern(name):
        mask = matching(list(ODD), pattern, 'keep')
        assert [n for n, m in zip(ODD, mask) if m] == [name]
    mask = matching(list(ODD), f'{as_pattern(name)},x1', 'keep')
    assert {n for n, m in zip(ODD, mask) if m} == {name, 'x1'}


def test_patterns():
    names = list(ODD)
    def picks(p): return [n for n, m in zip(names, matching(names, p, 'keep')) if m]
    assert picks('x*') == ['x[1]', 'x1'] and picks('[ab]') == ['a', 'b'] and picks('b,a') == ['a', 'b']
    assert picks('a,b,x1') == ['x1', 'a,b'] and picks('\u00e9t\u00e9') == ['e\u0301t\u00e9'] and picks('\\**') == ['*']
    with pytest.raises(NvsError, match="keep=x1,nobody: no clip is called 'nobody'"): picks('x1,nobody')


def test_names_of_any_bytes(tmp_path, load):
    root = tmp_path / 'root'
    raw = os.fsencode(film(root / 'ok.gif')).replace(b'ok', b'caf\xe9')
    try: shutil.copy(root / 'ok.gif', raw)
    except OSError: pytest.skip('this file system has no such names')
    for name in 'e\u0301', '\x1b[31mred', 'line\nbreak', '\u202efig': film(root / f'{name}.gif')
    clips = load(root)
    assert sorted(clips.names) == sorted(['ok', 'caf\\xe9', '\u00e9', '\\x1b[31mred', 'line\\x0abreak', '\\u202efig'])
    assert choose(clips, keep=os.fsdecode(b'caf\xe9')).names == choose(clips, keep='caf\\xe9').names == ['caf\\xe9']
    ''.join(clips.names).encode()  # and so they can be written anywhere


@pytest.mark.parametrize('names, want', [
    (['CON', 'nul.gif', 'Com1', 'con'], ['CON_', 'nul_.gif', 'Com1_', 'con_-2']),
    (['console', 'a...'], ['console', 'a']), (['A', 'a', '\u00e9', '../..'], ['A', 'a-2', '\u00e9', 'clip']),
    (['x' * 99, '\U00020000' * 99], ['x' * 80, '\U00020000' * 50])])
def test_file_names_for_any_system(names, want):
    safe = cli.safe_names(names)
    assert [s.casefold() for s in safe] == [w.casefold() for w in want]


@pytest.mark.parametrize('name', [
    'a|b', '# head', '**bold**', '![x](y)', '<script>', '&#60;', '$x$', '`code`', '\x1b[2J', 'a\nb', 'www.x.yz',
    'http://x.yz', '\udce9', '\u202e', '1*2*3'])
def test_names_in_pages(name, tmp_path):
    shown = printable(name)
    page = inline(literal(name))
    assert '<' not in page and '\n' not in page and '\x1b' not in page
    import html
    assert html.unescape(page) == shown
    assert text_table([(literal(name), 'x', '')]).rstrip(' x') == shown.rstrip(' x')
    row = md_table(['n'], [[literal(name)]]).split('\n')
    assert len(row) == 3 and row[2].count('|') == 2
    table = Table(['n'], [[literal(name)]])
    write_pages(tmp_path, literal(name), [code(name), name], [Section(literal(name), [table])])
    page = (tmp_path / 'report.html').read_text(encoding='utf-8').split('</style>')[1].rpartition('</main>')[0]
    assert '<script' not in page and '<img' not in page and html.unescape(page).count(shown) >= 4


# ---------------------------------------------------------------- the cache
@pytest.fixture
def decoded(monkeypatch):
    "How many sources have been decoded"
    n, real = [], readers.decode
    monkeypatch.setattr(readers, 'decode', lambda sources, *a: n.extend(sources) or real(sources, *a))
    return n


def test_cache_is_keyed_by_the_clips(root, load, tmp_path, decoded):
    film(root / 'b.gif', FILM[::-1])
    for i in range(2): text(root / 'train.log', 'line' * i), load(root)
    os.utime(root / 'a.gif', (1e9, 1e9)), load(root)
    shutil.move(root, tmp_path / 'moved')
    shutil.copytree(tmp_path / 'moved', root)
    assert len(decoded) == 2 and load(root).skipped == load(tmp_path / 'moved').skipped == ['1 file .log: not read']
    assert len(decoded) == 2  # a touch, another place and a copy are all the same


def test_same_size_and_time_but_other_content(root, load, decoded):
    path, was = root / 'a.gif', (root / 'a.gif').stat()
    before = np.array(load(root).frames)
    data = bytearray(path.read_bytes())
    data[13:16] = bytes(255 - x for x in data[13:16])  # a colour of the palette
    (root / 'new').write_bytes(data), os.replace(root / 'new', path)
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert path.stat().st_size == was.st_size and path.stat().st_mtime_ns == was.st_mtime_ns
    assert (load(root).frames != before).any() and len(decoded) == 2


def test_files_are_read_once(root, load, monkeypatch):
    load(root)
    monkeypatch.setattr(readers, 'hash_file', lambda path: pytest.fail('read again'))
    load(root), load(root, size=64)


def test_cache_has_a_limit(root, load, tmp_path, monkeypatch):
    home = tmp_path / 'cache'
    for i, size in enumerate((32, 64, 128)):
        load(root, size=size)
        for _, _, files in cache_entries(home):  # as if each were some time after the other
            for p in files: os.utime(p, (p.stat().st_mtime - 1000,) * 2)
    load(root, size=32)  # is used now
    monkeypatch.setenv('NVS_CACHE_LIMIT', '0.0002')
    load(root, size=32, frames=3)
    assert sorted(p.stat().st_size // 3000 for p in home.glob('folder*.npy')) == [3, 4]
    with pytest.warns(UserWarning, match='not kept: 0.0 GB, but .NVS_CACHE_LIMIT is 0.0002'): load(root, size=256)
    for bad in 'x', '-1', 'nan', 'inf':
        monkeypatch.setenv('NVS_CACHE_LIMIT', bad)
        with pytest.raises(NvsError, match=f'NVS_CACHE_LIMIT={bad}: a number of gigabytes'): load(root)


def test_cache_command(root, load, tmp_path, monkeypatch, capsys):
    home = tmp_path / 'cache'
    monkeypatch.setenv('NVS_CACHE', str(home))
    load(root), text(home / 'mine.npy'), text(home / '.folder-0123456789abcdef0123.part-x.npy')
    assert cli.main(['cache']) == 0 and 'folder-' in capsys.readouterr().out
    assert cli.main(['cache', 'clear']) == 0
    assert [p.name for p in home.iterdir()] == ['mine.npy']
    assert cli.main(['cache']) == 0 and '0.0 MB  in' in capsys.readouterr().out


def poison(kind, npy, meta):
    known, frames = json.loads(meta.read_text()), np.load(npy)
    if kind == 'shape': np.save(npy, frames[:, :2])
    if kind == 'pixels': np.save(npy, frames[:, ::-1])
    if kind == 'dtype': np.save(npy, frames.view(np.int8))
    if kind == 'objects': np.save(npy, np.array([print] * 3, object), allow_pickle=True)
    if kind == 'fortran': np.save(npy, np.asfortranarray(frames))
    if kind == 'header': npy.write_bytes(b'\x93NUMPY\x02\x00' + (2**31).to_bytes(4, 'little') + b' ' * 999)
    if kind == 'claims': npy.write_bytes(npy.read_bytes().replace(b'(1, 4', b'(9, 4', 1))
    if kind == 'folder': npy.unlink(), npy.mkdir()
    if kind == 'nested': meta.write_text('[' * 10**5)
    if kind == 'number': meta.write_text('1' * 10**5)
    if kind == 'long': meta.write_text(json.dumps(known) + ' ' * 10**6)
    changes = dict(kept=[5], digests=['0' * 16], bad=[7], short='x', stamp=[])
    if kind in changes: meta.write_text(json.dumps({**known, kind: changes[kind]}))
    if kind == 'resealed': meta.write_text(json.dumps(m := {**known, 'kept': [-1]} | dict(
        seal=readers.seal(npy.with_suffix(''), {**known, 'kept': [-1]}))))


@pytest.mark.parametrize('kind', ('shape pixels dtype objects fortran header claims folder nested number long kept '
                                  'digests bad short stamp resealed').split())
def test_poisoned_cache(kind, root, load, tmp_path, decoded):
    good = np.array(load(root).frames)
    npy = next((tmp_path / 'cache').glob('folder-*.npy'))
    poison(kind, npy, npy.with_suffix('.json'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore' if kind == 'folder' else 'error')  # it cannot be replaced: a note
        assert (load(root).frames == good).all()
    assert len(decoded) == 2


def test_index_of_any_content(root, load, tmp_path, decoded):
    load(root)
    index = next((tmp_path / 'cache').glob('index-*.json'))
    for content in '[]', '{"a.gif": 7}', '{"a.gif": [1, 2]}', '{', '{"a.gif": null}', '[' * 10**5:
        index.write_text(content)
        load(root)
    assert len(decoded) == 1


def test_a_copied_cache_is_checked_once(root, load, tmp_path, monkeypatch, decoded):
    load(root)
    shutil.copytree(tmp_path / 'cache', tmp_path / 'copy')
    load(root, cache=tmp_path / 'copy')
    monkeypatch.setattr(readers, 'digest', lambda clip: pytest.fail('hashed again'))
    load(root, cache=tmp_path / 'copy')
    assert len(decoded) == 1


def test_only_some_clips(root, tmp_path, monkeypatch):
    monkeypatch.setenv('NVS_CACHE', str(tmp_path / 'cache'))
    film(root / 'b.gif', FILM[::-1]), film(root / 'c.gif', FILM[:, ::-1])
    config = make_config('folder', size=32, frames=4, levels=3, leave_out='b')
    was = load_clips(config, root)
    film(root / 'aa.gif'), text(root / 'bad.gif')
    now = load_clips(config, root, was.names)
    assert now.fingerprint() == was.fingerprint() and now.names == ['a', 'c']
    with pytest.raises(NvsError, match='none of these clips is there: gone'): load_clips(config, root, ['gone'])
