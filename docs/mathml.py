"Formulas as MathML, which browsers draw themselves: docutils translates, so that the book needs no network."
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def slug(text):
    "The anchor of a heading, as JupyterLab makes it"
    return text.strip().replace(' ', '-')


def known(tex):
    "What docutils' translator knows: one size of brackets, three dots by another name, braces around both parts"
    tex = re.sub(r'\\[bB]ig+[lrm]?(?![a-z])', '', tex)
    return re.sub(r'\\[dt]?frac\s*(\w)\s*(\w)', r'\\frac{\1}{\2}', re.sub(r'\\dots\b', r'\\ldots', tex))


def mathml(self, node, tex, block):
    try: return tex2mathml(known(tex), as_block=block)
    except Exception as e:
        log.warning('formula %r: %s', tex, e, location=node)
        return self.encode(tex)


def inline(self, node):
    self.body.append(mathml(self, node, node.astext(), False))
    raise nodes.SkipNode


def display(self, node):
    tag = re.search(r'\\tag\{([^}]*)\}', tex := node.astext())
    number = f'<span class="eqno">({self.encode(tag[1])})</span>' if tag else ''
    tex = tex.replace(tag[0], '') if tag else tex
    self.body.append(f'<div class="formula">{number}{mathml(self, node, tex.strip(), True)}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer('mathml', (inline, None), (display, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
