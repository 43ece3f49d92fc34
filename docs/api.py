"""The reference of the library, one page for each module, read from its source: nothing is imported.

Signatures, docstrings and the comments behind arguments (`width=512,  # channels`) become MyST markdown.
"""
import ast
import io
import re
import tokenize
from pathlib import Path


def comments(source):
    "Comment by line number (from 1), and the numbers of lines that hold nothing else"
    found, alone = {}, set()
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type != tokenize.COMMENT: continue
        found[t.start[0]] = t.string.lstrip('# ').strip()
        if not t.line[:t.start[1]].strip(): alone.add(t.start[0])
    return found, alone


class Module:
    "A source file: `names` in the order of `__all__`, and `page()`, the markdown."

    def __init__(self, path, name):
        self.source, self.name = Path(path).read_text(encoding='utf-8'), name
        self.tree = ast.parse(self.source)
        self.comments, self.alone = comments(self.source)
        self.nodes, self.names = {}, []
        for node in self.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): self.nodes[node.name] = node
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    for t in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(t, ast.Name): self.nodes[t.id] = node
        if '__all__' in self.nodes: self.names = ast.literal_eval(self.nodes['__all__'].value)

    def comment(self, line):
        "The comment at the end of a line, with the lines of nothing but comment that follow it"
        parts = [self.comments.get(line, '')]
        while parts[0] and line + 1 in self.alone: parts.append(self.comments[line := line + 1])
        return ' '.join(parts)

    def rows(self, named):
        "(names, default, comment) of arguments or fields, given as (name, default, last line); one row for each line"
        rows = {}
        for name, default, line in named:
            names, defaults = rows.setdefault(line, ([], []))
            names.append(name)
            if default is not None: defaults.append(brief(default))
        return [(', '.join(f'`{n}`' for n in names), ', '.join(f'`{d}`' for d in defaults), self.comment(line))
                for line, (names, defaults) in rows.items()]

    def arguments(self, f, skip=0):
        a = f.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
        args = [*zip(plain, defaults)][skip:]
        if a.vararg: args.append((a.vararg, None))
        args += zip(a.kwonlyargs, a.kw_defaults)
        if a.kwarg: args.append((a.kwarg, None))
        stars = {id(a.vararg): '*', id(a.kwarg): '**'}
        return [(stars.get(id(x), '') + x.arg, d, (d or x).end_lineno) for x, d in args]

    def returns(self, f):
        "The comment behind the colon that ends the head of a function"
        for line in range(f.lineno, f.body[0].lineno):
            text = self.source.splitlines()[line - 1]
            if line in self.comments and re.search(r'\)(\s*->[^#]*)?:\s*#', text): return self.comment(line)
        return ''

    def function(self, f, kind='function', skip=0, depth=4):
        rows = self.rows(self.arguments(f, skip))
        body = [prose(ast.get_docstring(f)), table(rows, 'argument'), returns_line(self.returns(f))]
        return directive(kind, f'{f.name}({signature(f.args, skip)})', body, depth)

    def klass(self, c):
        methods = [n for n in c.body if isinstance(n, ast.FunctionDef)]
        start = next((m for m in methods if m.name == '__init__'), None)
        fields = [(n.target.id, value(n.value), n.end_lineno) for n in c.body
                  if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name) and n.target.id[0] != '_']
        fields = [f for f in fields if not re.match(r'ClassVar', f[0])]
        if start: named, head = self.arguments(start, 1), signature(start.args, 1)
        else: named, head = fields, ', '.join(n if d is None else f'{n}={brief(d)}' for n, d, _ in fields)
        bases = ', '.join(ast.unparse(b) for b in c.bases)
        body = [prose(ast.get_docstring(c)), f'Extends `{bases}`.' if bases else '',
                prose(ast.get_docstring(start)) if start else '',
                table(self.rows(named), 'argument' if start else 'field')]
        for m in methods:
            if m.name[0] == '_': continue
            marks = {ast.unparse(d).split('.')[-1] for d in m.decorator_list}
            kind = 'property' if marks & {'property', 'cached_property'} else 'method'
            skip = 0 if 'staticmethod' in marks else 1
            if kind == 'property': body.append(directive(kind, m.name, [prose(ast.get_docstring(m))], 4))
            else: body.append(self.function(m, kind, skip, 4))
        return directive('class', f'{c.name}({head})' if head else c.name, body, 5)

    def page(self, intro=''):
        parts = [f'# {self.name}', prose(ast.get_docstring(self.tree)), intro,
                 f'```{{py:module}} nvs_nb.{self.name}\n```']
        for name in self.names:
            node = self.nodes.get(name)
            if isinstance(node, ast.FunctionDef): parts.append(self.function(node))
            elif isinstance(node, ast.ClassDef): parts.append(self.klass(node))
            elif node:
                single = not isinstance(node.targets[0], ast.Tuple)
                body = [escaped(self.comment(node.lineno)), f'`{ast.unparse(node.value)}`' if short(node.value) else '']
                parts.append(directive('data', name, body if single else [], 4))
        return '\n\n'.join(p for p in parts if p) + '\n'


def value(node):
    "The default in `Field(default, ...)`, `within(default, low, high)`, `field(default_factory=list)`; else the node"
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ('Field', 'within', 'field'):
        if node.args: return node.args[0]
        for k in node.keywords:
            if k.arg in ('default', 'default_factory'): return k.value
    return node


def short(node): return len(ast.unparse(node)) <= 90


def brief(node):
    "A default as it is written, if that is short"
    text = ast.unparse(node).replace('\n', ' ')
    return text if len(text) <= 40 else '...'


def signature(a, skip=0):
    "Arguments and defaults, without annotations, which the tables spell out"
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    one = lambda x, d: x.arg if d is None else f'{x.arg}={brief(d)}'
    out = [one(x, d) for x, d in zip(plain, defaults)]
    if a.posonlyargs: out.insert(len(a.posonlyargs), '/')
    out = out[skip:]
    if a.vararg: out.append('*' + a.vararg.arg)
    elif a.kwonlyargs: out.append('*')
    out += [one(x, d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: out.append('**' + a.kwarg.arg)
    return ', '.join(out)


def escaped(text):
    "Outside of `code`, nothing in a docstring or comment is markup"
    parts = re.split(r'(`[^`\n]*`)', text)
    return ''.join(p if i % 2 else re.sub(r'([\\*_<>\[\]$|#{}~])', r'\\\1', p) for i, p in enumerate(parts))


def prose(text):
    "A docstring as paragraphs; indented blocks stay as they are"
    if not text: return ''
    blocks = re.split(r'\n\s*\n', text.strip())
    return '\n\n'.join('```text\n' + b.strip('\n') + '\n```' if re.match(r'\s{4}', b.strip('\n')) else
                       escaped(' '.join(x.strip() for x in b.splitlines())) for b in blocks)


def cell(text): return re.sub(r'(?<!\\)\|', r'\\|', text).replace('\n', ' ')


def table(rows, what):
    if not any(r[2] for r in rows): return ''
    lines = [f'| {what} | default | |', '|:--|:--|:--|']
    return '\n'.join(lines + [f'| {cell(n)} | {cell(d)} | {cell(escaped(c))} |' for n, d, c in rows])


def returns_line(text): return f'**Returns** {escaped(text)}' if text else ''


def directive(kind, head, body, depth):
    "A directive of Sphinx's Python domain"
    text = '\n\n'.join(b for b in body if b)
    fence = ':' * depth
    return f'{fence}{{py:{kind}}} {head}\n\n{text}\n{fence}' if text else f'{fence}{{py:{kind}}} {head}\n{fence}'
