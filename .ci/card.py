"""Write the model card of the run that ships with the library, its figures computed from the run itself.

    python .ci/card.py            write nvs_nb/embedded/pretrained/README.md
    python .ci/card.py --check    change nothing; exit code 1 and one line if the card says something else

Processors round differently, so a figure of the card may differ from a new one by one unit of its last digit.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / 'nvs_nb/embedded/pretrained/README.md'
FIGURE = re.compile(r'(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.]*\w)')

TEXT = '''# Model card: the shipped run

A run of the preset `{preset}` on the {n} embedded chairs: networks, latent codes and settings in one file,
`checkpoint.pt` ({size:.1f} MB, {parameters:,} parameters). It opens by its name:

```python
from nvs_nb import generate, open_run
run = open_run('pretrained')
frames = generate(run.model, run.about['static_id'], run.about['transient_id'])  # uint8 ({n}, {L}, {H}, {H}, 3)
```

**What it is for.** Trying the library and reading its chapters without a training: look at learnt codes, mix them, draw
new clips, measure. It is a demonstration of *Non-Adversarial Video Synthesis with Learned Priors* (Aich et al., CVPR
2020), not a model of chairs in general.

**Trained on** [{n} chairs](../chairs/README.md) that their authors placed in the public domain, {L} frames of {H}x{H}
pixels each, all of them seen in training. No person is in any of them. Epochs: {epochs}; seed: {seed}; precision:
{precision}. One command trains it anew:

```sh
{command}
```

**How well it reproduces them.** These are reconstructions of the clips that it was trained on. The mean frame is each
clip's average, shown all the time: what a model reaches that has learnt no motion. PCA is what principal components
reach with a byte for each of the model's parameters.

| | the run | mean frame | PCA |
|---|---|---|---|
{rows}

**What it cannot do.** It knows no chair but these, one turn of the camera at one height, on white. What becomes of
other clips, and of clips drawn from a prior over so few codes, the chapters measure:
[Encode](../../../nbs/4_beyond/15_encode.ipynb), [New clips](../../../nbs/4_beyond/14_new_clips.ipynb).

**Licence.** Apache License 2.0, as the library.
'''


def render():
    from nvs_nb.data.clips import load_set
    from nvs_nb.evaluation.metrics import mean_frame, pca_scores, pixel_scores
    from nvs_nb.evaluation.report import command
    from nvs_nb.models.nvs import generate
    from nvs_nb.training.checkpoint import open_run
    run, real = open_run('pretrained'), load_set('chairs').frames
    c, parameters = run.config, sum(p.numel() for p in run.model.parameters())
    fake = generate(run.model, run.about['static_id'], run.about['transient_id'])
    columns = pixel_scores(real, fake), pixel_scores(real, mean_frame(real)), pca_scores(real, parameters)[0]
    rows = [('PSNR, mean (dB)', 'psnr_mean', 1), ('PSNR, worst clip (dB)', 'psnr_worst', 1),
            ('PSNR, moving pixels (dB)', 'psnr_moving', 1), ('SSIM', 'ssim', 3)]
    lines = [f'| {label} | ' + ' | '.join(f'{s[key]:.{d}f}' for s in columns) + ' |' for label, key, d in rows]
    return TEXT.format(preset=c.preset, n=len(real), L=real.shape[1], H=real.shape[2], seed=c.seed,
                       precision=c.precision, epochs=c.budget.epochs, parameters=parameters, rows='\n'.join(lines),
                       command=command(c),
                       size=(run.folder/'checkpoint.pt').stat().st_size / 1e6)


def same(a, b):
    "Whether two texts are alike but for one unit in the last digit of figures with a fraction"
    if FIGURE.sub('#', a) != FIGURE.sub('#', b): return False
    for x, y in zip(FIGURE.findall(a), FIGURE.findall(b)):
        unit = 10. ** -len(x.partition('.')[2]) if '.' in x else 0
        if abs(float(x.replace(',', '')) - float(y.replace(',', ''))) > unit * 1.01: return False
    return True


def main(check):
    text, there = render(), CARD.read_text(encoding='utf-8') if CARD.exists() else ''
    if same(text, there): return
    name = CARD.relative_to(ROOT).as_posix()
    if check: raise SystemExit(f'{name} says something else than the run (mend it with: make prepare)')
    CARD.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    if sys.argv[1:] not in ([], ['--check']): raise SystemExit(__doc__)
    main(check=bool(sys.argv[1:]))
