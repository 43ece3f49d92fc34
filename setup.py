"Package metadata lives in settings.ini: edit it there."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(here / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
lib, repo, branch = cfg['lib_path'], cfg['git_url'].rstrip('/'), cfg['branch']
docs = cfg['doc_host'] + cfg['doc_baseurl']
pythons = [f'3.{minor}' for minor in range(10, int(cfg['max_python'].split('.')[1]) + 1)]


def absolute(text):
    "README.md for readers elsewhere, such as on PyPI: relative links lead to the repository, pictures to their bytes"
    raw = repo.replace('https://github.com', 'https://raw.githubusercontent.com')
    def one(m):
        if not m[2]: return m[0]  # code
        place = f'{raw}/{branch}' if m[1][0] == '!' or m[1].startswith('src') else f'{repo}/blob/{branch}'
        return f'{m[1]}{place}/{m[2]}'
    link = r'```.*?```|`[^`\n]*`|(!?\[[^\]\[]*\]\(|(?:src|href)=")(?![a-z][a-z+.-]*:|[#/])([^)"\s]+)'
    return re.sub(link, one, text, flags=re.S)


data = [p.relative_to(here / lib).as_posix() for p in sorted((here / lib).rglob('*'))
        if p.is_file() and p.suffix not in ('.py', '.pyc')]
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
extras['dev'] += [r for name in ('notebook', 'explore', 'book') for r in extras[name]]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=absolute((here / 'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=repo,
    project_urls={'Documentation': docs, 'Source': repo, 'Issues': f'{repo}/issues',
                  'Changes': f'{repo}/blob/{branch}/CHANGELOG.md'},
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=cfg['keywords'],
    classifiers=[
        {'2': 'Development Status :: 2 - Pre-Alpha', '3': 'Development Status :: 3 - Alpha',
         '4': 'Development Status :: 4 - Beta', '5': 'Development Status :: 5 - Production/Stable'}[cfg['status']],
        'Environment :: Console', 'Framework :: Jupyter', 'Intended Audience :: Education',
        'Intended Audience :: Science/Research', 'Natural Language :: English', 'Operating System :: OS Independent',
        'Programming Language :: Python :: 3', *(f'Programming Language :: Python :: {v}' for v in pythons),
        'Topic :: Multimedia :: Video', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=[lib, f'{lib}.*']),
    package_data={lib: data},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': [f'nvs = {lib}.cli:main'],
        'nbdev': [f'{lib} = {lib}._modidx:d'],
    },
)
