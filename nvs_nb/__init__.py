"""Non-adversarial video synthesis with learned priors.

The names that most programs need are here; they are imported when they are first used, since PyTorch takes seconds.
"""
__version__ = "0.2.0"
__all__ = ['Config', 'NvsError', 'Trainer', 'compare', 'generate', 'load_clips', 'load_set', 'make_config', 'open_run', 'score_all']


def __getattr__(name):
    if name in ('Config', 'make_config'): from . import config as home
    elif name in ('load_clips', 'load_set'): from .data import clips as home
    elif name == 'generate': from .models import nvs as home
    elif name == 'Trainer': from .training import trainer as home
    elif name == 'open_run': from .training import checkpoint as home
    elif name == 'score_all': from .evaluation import report as home
    elif name == 'compare': from .paper import baselines as home
    elif name == 'NvsError': from . import core as home
    else: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(home, name)


def __dir__(): return sorted([*globals(), *__all__])
