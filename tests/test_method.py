"The drawing of the method, one forward for training and generation, and the released code's triplet loss."
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from nvs_nb.config import make_config
from nvs_nb.core import NvsError
from nvs_nb.models.build import build_model, triplet_released
from nvs_nb.models.nvs import generate
from nvs_nb.paper.diagram import UNIT, arrow, canvas, cells, draw_method
from nvs_nb.viz import COLORS


def test_the_drawing_says_what_section_3_3_says():
    ax = draw_method().axes[0]
    badges = {'$\\gamma$': 39.5, '$z^{(s)}$': 31.3, '$\\theta$': 17.5, '$z^{(t)}$': 7}
    at = {(t.get_text(), t.get_position()) for t in ax.texts}
    assert {(name, (84, y)) for name, y in badges.items()} <= at
    dashed = [a for a in ax.texts if getattr(a, 'arrow_patch', None) and a.arrow_patch.get_linestyle() == '--']
    def reached(color):
        mine = [a.xy for a in dashed if a.arrow_patch.get_edgecolor() == to_rgb(COLORS[color]) + (1,)]
        return {name for name, y in badges.items() if any(xy[0] == 86.1 and abs(xy[1]-y) < 1 for xy in mine)}
    assert {c: reached(c) for c in ('green', 'purple')} == {'green': set(badges), 'purple': {'$\\theta$', '$z^{(t)}$'}}


def test_the_figure_is_shown_once_and_holds_everything():
    fig = draw_method()
    fig.canvas.draw()
    assert not plt.get_fignums()  # pyplot holds no second copy
    labels = [t for t in fig.axes[0].texts if t.get_text()]
    boxes = np.array([t.get_window_extent().extents for t in labels])
    assert len(labels) > 30 and (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= fig.bbox.extents[2:]).all()


@pytest.mark.parametrize('x,y', [((0, 22), (-3, 44)), ((18, 83), (0, 10))])
def test_parts_share_one_scale(x, y):
    fig, ax = canvas(x, y)
    ax.imshow(np.zeros((2, 2)), extent=(0, 1, 0, 1))  # a picture must not move the limits
    fig.canvas.draw()
    assert (ax.get_xlim(), ax.get_ylim()) == (x, y)
    (x0, y0), (x1, y1) = ax.transData.transform([(0, 0), (1, 1)])
    assert (x1-x0)/fig.dpi == pytest.approx(UNIT) == (y1-y0)/fig.dpi


def test_cells_and_arrows_are_where_they_should_be():
    _, ax = canvas((0, 20), (0, 20))
    cells(ax, 2, 3, 8, 4, np.array([[0, .5, 1, .25], [1, 0, 0, 0]]), 'blue')
    first, last = ax.patches[2], ax.patches[-1]
    assert first.get_bbox().bounds == (6, 3, 2, 2)
    assert first.get_facecolor()[:3] == pytest.approx(to_rgb(COLORS['blue']))
    assert last.get_bbox().bounds == (2, 3, 8, 4) and len(ax.patches) == 9
    arrow(ax, (1, 1), (5, 1), (5, 9))
    assert ax.texts[-1].xy == (5, 9) and ax.lines[-1].get_xydata().tolist() == [[1, 1], [5, 1]]


SMALL = dict(size=32, frames=8, width=16, hidden=12, d_s=6, d_t=5, levels=3, frames_per_clip=3)
CLIPS = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 3])
AT = torch.tensor([[0, 4, 7], [1, 2, 3], [2, 5, 6]])


@pytest.mark.parametrize('label', ['none', 'static', 'transient'])
@pytest.mark.parametrize('norm', ['batch', 'group'])
@torch.no_grad()
def test_frames_drawn_in_a_step_are_frames_of_the_whole_clip(label, norm):
    model = build_model(make_config('actors', label=label, norm=norm, g_init='fan', **SMALL), 2, 4).eval()
    whole, r = model(*CLIPS)
    some, r_some = model(*CLIPS, AT)
    assert torch.equal(r, r_some)  # the path is read whole, whatever is drawn of it
    assert torch.allclose(some, whole[torch.arange(3)[:, None], AT], atol=1e-5)
    assert not torch.allclose(some, whole[:, :3], atol=1e-3)
    made = torch.from_numpy(generate(model, *CLIPS).astype(np.float32))
    assert (made.movedim(-1, 2) - (whole + 1) * 127.5).abs().max() < .51  # what is trained is what is generated
    mixed = model.decode(*model.codes(*CLIPS), *CLIPS)
    assert torch.allclose(mixed, whole, atol=1e-6)


@torch.no_grad()
def test_the_released_model_cuts_the_flat_list():
    model = build_model(make_config('chairs', 'released', size=32, width=16, hidden=12, d_s=6, d_t=5, levels=3), 1, 4)
    z_s, r = torch.randn(2, 6), torch.randn(2, 16, 5)
    flat = model.points(z_s, r)[1].flatten()
    assert torch.equal(flat, torch.cat([z_s[1].repeat(16), r[1].flatten()]))
    with pytest.raises(NvsError, match='frames_per_clip: the model released has no such setting'):
        make_config('chairs', 'released', frames_per_clip=4)


def released_loop(r, margin):
    "Our reading of the released code, pair by pair"
    L, hinges = len(r), []
    for a in range(L):
        for p in range(max(0, a - 2), min(L, a + 3)):
            if p == a: continue
            d_ap, nearest = (r[a] - r[p]).norm(), None
            for n in range(L):
                if abs(n - a) <= 5: continue
                d_an = (r[a] - r[n]).norm()
                if d_an < d_ap + margin and (nearest is None or d_an < nearest): nearest = d_an
            hinges.append(torch.tensor(0.) if nearest is None else d_ap - nearest + margin)
    return torch.stack(hinges)


@pytest.mark.parametrize('r', [torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 16, 8),
    torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1)).round(), torch.randn(2, 4, 8),
    9 * torch.eye(16).expand(2, -1, -1)],
    ids='random equal ties short far'.split())
def test_released_triplets(r):
    loss, active = triplet_released(r := r.clone().requires_grad_(), 2.)
    hinges = torch.cat([released_loop(x, 2.) for x in r.detach()])
    assert loss.item() == pytest.approx(hinges.mean().item(), abs=1e-4)
    assert active.item() == pytest.approx((hinges > 0).float().mean().item(), abs=.02)
    loss.backward()
    assert r.grad.isfinite().all()  # equal codes, or no negative at all, must not give NaN
