"""Every preset and every baseline takes two steps on the `meta` device, in its real size: tensors there have a shape and
no values, so a mix-up of devices, or a step that waits to see a value, raises."""
import pytest
import torch

from nvs_nb.config import BASELINES, DATASETS, PRESETS, make_config
from nvs_nb.models.build import build_model
from nvs_nb.training.sampler import Batch
from nvs_nb.training.steps import training_step

CASES = {f'{dataset}-{preset}': (dataset, preset, 'nvs', {}) for dataset in DATASETS for preset in PRESETS}
CASES |= {f'{model}-{preset}': ('chairs', preset, model, {}) for model in BASELINES for preset in ('fast', 'paper')}
CHANGES = [dict(rank=2), dict(loss='mse', output='linear', norm='none'), dict(label='transient'), dict(norm='batch'),
           dict(schedule='alternating'), dict(code_norm='none', latent_opt='sgd'),
           dict(train_frames='alternate', frames_per_clip=0), dict(static_ids='shared', transient_ids='dataset')]
CASES |= {' '.join(f'{k}={v}' for k, v in c.items()): ('chairs', 'fast', 'nvs', dict(width=32, **c)) for c in CHANGES}


def step_on_meta(c):
    model = build_model(c, 4, 4).to('meta')
    optimizers, L, size, meta = model.optimizers(), c.data.frames, c.data.size, dict(device='meta')
    assert not any(group.get('fused') for o in optimizers.values() for group in o.param_groups)  # which needs a device
    ids, K = torch.zeros(4, dtype=torch.long, **meta), getattr(c.model, 'frames_per_clip', 0) or L
    at = torch.zeros(4, K, dtype=torch.long, **meta)
    batch = Batch(ids, ids, torch.zeros(4, K, size, size, 3, dtype=torch.uint8, **meta), at, ids)
    for step in range(2): terms = training_step(model, optimizers, batch._replace(step=step))
    assert set(model.TERMS) <= set(terms) and all(terms[k].device.type == 'meta' for k in model.TERMS)
    assert all(x.device.type == 'meta' for x in model.state_dict().values())


@pytest.mark.parametrize('case', CASES)
def test_two_steps_on_the_meta_device(case):
    dataset, preset, model, changes = CASES[case]
    if preset == 'paper' and model == 'nvs': changes = dict(gamma_steps=2)  # not ten times the same
    step_on_meta(make_config(dataset, preset, model, **changes))


@pytest.mark.parametrize('wait', [lambda x: x.sum().item(), lambda x: bool((x > 0).any()), lambda x: x + torch.ones(3)])
def test_it_would_be_seen(wait):
    with pytest.raises((RuntimeError, NotImplementedError)): wait(torch.zeros(3, device='meta'))
