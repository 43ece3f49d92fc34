"Nothing in a step waits for its device, and what is measured is right."
import json, re
from pathlib import Path
import pytest, torch
from nvs_nb.bench import presets, speed
from nvs_nb.config import make_config, parse_changes
from nvs_nb.core import NvsError, one_line, read_json, write_json
from nvs_nb.data.clips import load_set
from nvs_nb.training.runtime import CUDAGraph, can_capture
from nvs_nb.training.trainer import Trainer

TINY = dict(size=32, width=16, hidden=8, d_s=6, d_t=5, levels=3, precision='fp32', threads=1, epochs=1000)
PRESETS = dict(fast=dict(batch=8), paper=dict(batch=4), released=dict(repeats=2), rank=dict(rank=2),
               plain=dict(loss='mse', output='linear'))

def config(preset, **changes):
    name = preset if preset in ('paper', 'released') else 'fast'
    return make_config('chairs', name, **{**TINY, **PRESETS[preset], **changes})

def trainer(preset, device='cpu', log_every=10, **changes):
    clips = load_set('chairs', size=32)
    return Trainer(config(preset, **changes), clips, device=device, progress=False, log_every=log_every)

@pytest.mark.parametrize('preset', PRESETS)
def test_a_step_asks_the_device_nothing(preset, monkeypatch):
    if preset == 'released':  # its Adam asks for step counts, which are on the processor
        monkeypatch.setattr(torch.optim, 'Adam', lambda params, lr, **kw: ADAM(params, lr, fused=True))
    t = trainer(preset)
    t.advance()  # the first step makes the optimisers' averages
    with speed.Count() as count:
        for _ in range(4): t.advance()
    assert count.waits == [] and count.ops > 100  # the decomposition of `rank` waits on CUDA, inside one operation
ADAM = torch.optim.Adam

@pytest.mark.parametrize('ask', [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.nonzero(),
                                 lambda x: x.unique(), lambda x: bool((x > 0).all())])
def test_questions_are_seen(ask):
    with speed.Count() as count: ask(torch.randn(5))
    assert count.waits

def test_metrics_are_read_every_k_steps(monkeypatch):
    t, read, tolist = trainer('fast', log_every=7), [], torch.Tensor.tolist
    def spy(x):
        read.append(t.step)
        return tolist(x)
    monkeypatch.setattr(torch.Tensor, 'tolist', spy)
    t.fit(until=30)
    assert read == [7, 14, 21, 28, 30] and [m['step'] for m in t.metrics] == read  # the last at the end

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
class TestCuda:
    @pytest.mark.parametrize('preset', sorted({*PRESETS} - {'rank'}))  # a decomposition waits for its result
    def test_no_synchronisation_within_a_step(self, preset):
        t = trainer(preset, 'cuda', cuda_graph='no')
        for _ in range(3): t.advance()
        torch.cuda.set_sync_debug_mode('error')
        try:
            for _ in range(6): t.advance()
        finally: torch.cuda.set_sync_debug_mode('default')

    @pytest.mark.parametrize('preset, changes', [('fast', {}), ('paper', {}), ('fast', dict(data_on_device='no')),
                                                 ('fast', dict(batch=4)), ('fast', dict(compile=True))])
    def test_a_replayed_step_learns_the_same(self, preset, changes):
        runs = [trainer(preset, 'cuda', cuda_graph=graph, **changes) for graph in ('no', 'no', 'yes')]
        for t in runs:
            for _ in range(8): t.advance()
            t.sampler.close()
        a, again, b = (t.model.state_dict() for t in runs)
        far = lambda x: max(float((a[k].float() - x[k].float()).norm() / (a[k].float().norm() + 1e-6)) for k in a)
        assert far(b) <= 3 * far(again) + 1e-2  # kernels that add in any order make two ordinary runs differ, too
        assert isinstance(runs[2].compute, CUDAGraph) and runs[2].compute.graphs

    def test_a_run_may_change_its_device(self, tmp_path):
        clips = load_set('chairs', size=32)
        Trainer(config('fast'), clips, tmp_path/'run', device='cuda', progress=False).fit(until=10)
        assert Trainer.resume(tmp_path/'run', clips, device='cpu', progress=False).fit(until=12).step == 12
        assert Trainer.resume(tmp_path/'run', clips, device='cuda', progress=False).fit(until=20).step == 20

def test_capture_needs_cuda():
    cpu = torch.device('cpu')
    with pytest.raises(NvsError, match='cuda_graph=yes needs a CUDA device'):
        can_capture(config('fast', cuda_graph='yes'), cpu)
    assert not can_capture(config('fast'), cpu)

def test_a_trainer_may_fit_again_and_stream():
    t = trainer('fast', data_on_device='no')
    t.fit(until=2)
    t.stopped = 15  # as after a signal
    assert t.fit(until=5).step == 5 and not t.stopped

@pytest.mark.parametrize('main, args, says', [
    (speed.main, ['--out', '/nowhere/x.json'], '--out /nowhere/x.json: cannot write there'),
    (speed.main, ['--device', 'warp'], '--device warp'),
    (presets.main, ['folder=/nowhere'], '/nowhere: no such folder'),
    (presets.main, ['chars'], "unknown dataset 'chars'"), (presets.main, ['chairs', '--only', 'x'], '--only x: use')])
def test_the_commands_say_what_is_wrong_before_they_measure(main, args, says, capsys):
    with pytest.raises(SystemExit) as stop, one_line('bench'): main(args)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and len(err.splitlines()) == 1

@pytest.mark.slow  # the chapter climbs, too
def test_the_ladder(tmp_path, monkeypatch):
    rungs, climb = speed.rungs, speed.climb
    some = "the paper's text", 'joint step', 'frames per clip'
    monkeypatch.setattr(speed, 'rungs', lambda *a: {k: v for k, v in rungs(*a).items() if k in some})
    monkeypatch.setattr(speed, 'climb', lambda *a, **kw: climb(*a, width=32, **kw))
    speed.main(['--minutes', '.01', '--batch', '2', '--device', 'cpu', '--out', str(tmp_path/'here.json')])
    found = json.loads((tmp_path/'here.json').read_text())
    assert [*found['rungs']] == [*some] and not [k for k, r in found['rungs'].items() if 'failed' in r]
    for r in found['rungs'].values(): assert r['difference'] <= r['tolerance'] and r['seconds'] > 0 and r['flops'] > 0
    assert found['rungs']["the paper's text"]['flops'] > 4 * found['rungs']['joint step']['flops']  # six passes, one

def test_a_rung_that_fails_is_told(monkeypatch):
    def fail(*a): raise RuntimeError('no compiler\nhere')
    monkeypatch.setattr(speed, 'measure_rung', fail)
    monkeypatch.setattr(speed, 'measure_peaks', lambda device: {})
    told = []
    found = speed.climb(torch.device('cpu'), batch=1, report=told.append)['rungs']
    assert all(r['failed'] == 'RuntimeError: no compiler' for r in found.values()) and len(told) == len(found) == 10

def test_tune_finds_the_fastest_settings(monkeypatch):
    "With steps that take as long as we say, on a machine that is disturbed for a while."
    cost, now = dict(fp32=.004, bf16=.002, channels_last=.002, contiguous=.001), [0.]
    def advance(t):
        busy = 5 if 1. < now[0] < 1.25 else 1  # half of a round
        now[0] += busy * (cost[t.c.precision] + cost[t.c.runtime.memory_format])
        t.clips_seen += 8
    monkeypatch.setattr(Trainer, 'advance', advance)
    c, clips, threads = config('fast'), load_set('chairs', size=32), torch.get_num_threads()
    def tune():
        with monkeypatch.context() as m:
            m.setattr(speed.time, 'perf_counter', lambda: now[0])
            return speed.tune(c, clips, 'cpu', seconds=2., rounds=3)
    rows, line = tune()
    assert torch.get_num_threads() == threads
    best, rate, ratio = rows[0]
    assert (best['precision'], best['runtime.memory_format']) == ('bf16', 'contiguous')
    assert rate == pytest.approx(8 / .003) and ratio == pytest.approx(2, rel=.1) and any(r == 1 for *_, r in rows)
    assert [r for *_, r in rows] == sorted((r for *_, r in rows), reverse=True)
    changed = c.replace(**parse_changes(re.findall(r'--set (\S+)', line)))
    assert (changed.precision, changed.runtime.memory_format) == ('bf16', 'contiguous')
    cost.update(bf16=.004, contiguous=.002)  # now nothing gains
    assert tune()[1] == ''

def test_tune_measures_steps_of_the_trainer():
    rows, _ = speed.tune(config('fast'), load_set('chairs', size=32), 'cpu', seconds=1., rounds=2)
    assert len(rows) >= 4 and all(rate > 0 and ratio > 0 for _, rate, ratio in rows)

def test_races_go_on_where_they_stopped(tmp_path, capsys, monkeypatch):
    "Two variants in halving of three heats, with seconds divided by a thousand; a second call runs what is missing"
    monkeypatch.chdir(tmp_path)
    three = {k: presets.Variant(dict(batch=n)) for k, n in dict(a=4, b=5, c=6).items()}
    monkeypatch.setattr(presets, 'VARIANTS', three)
    monkeypatch.setattr(presets, 'CONTROLS', ('c',))
    small = {**TINY, 'epochs': 1, 'seconds': .05}
    def go(**kw): return presets.run_races('x.json', dict(chairs='', actors=''), [*'abc'], 'here', changes=small, **kw)
    rows = go(keep='kept')
    ways = [(e['dataset'], e['seconds'], e['seed']) for e in rows.values()]
    assert ways.count(('chairs', 120, 0)) == 3 and ways.count(('actors', 300, 0)) == 2 and ('chairs', 600, 0) in ways
    assert {w[2] for w in ways if w[1] == 300} == {0, 1, 2} and ('actors', 1200, 0) in ways
    last = rows['chairs, 120 s, seed 0: a']
    assert last['curve'][-1][1] == last['steps'] and 0 < last['ssim'] < 1
    assert len([*Path('kept').iterdir()]) == len(rows)
    book = read_json('x.json')
    gone = book['rows'].pop([*rows][-1])  # of the last heat, which decides nothing
    write_json('x.json', book)
    capsys.readouterr()
    assert set(go()) == {*rows} and capsys.readouterr().out.count('\n') == 1 and gone['parameters'] > 0
    assert {p.name for p in tmp_path.iterdir()} == {'x.json', 'kept'}  # no lock is left

def test_a_race_of_controls_alone_ends():
    both = ['glo', 'HNeRV-like']
    rows, asked = {}, None
    while asked != {*rows}:
        asked = {*rows}
        rows |= {e.key: dict(psnr_mean=1.) for part in presets.schedule(rows, 'chairs', ['actors'], both) for e in part}
    assert {'chairs, 600 s, seed 0: glo', 'chairs, 600 s, seed 0: HNeRV-like'} <= asked
    assert not any('1200' in k for k in asked)

def test_a_race_that_fails_is_a_result(monkeypatch):
    def fail(t): raise NvsError('step 10: loss is not finite')
    monkeypatch.setattr(Trainer, 'log', fail)
    assert 'not finite' in presets.race(config('fast', seconds=1.), load_set('chairs', size=32))['failed']
