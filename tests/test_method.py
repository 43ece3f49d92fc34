"The drawing of the method: what its arrows say, and that its parts share one scale."
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

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
