"Sphinx's configuration of the book; docs/book.py writes what it reads."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from book import CFG

project, author, release = CFG['title'], CFG['author'], CFG['version']
copyright = CFG['copyright']
extensions = ['myst_nb', 'mathml']
exclude_patterns = ['_pictures']
suppress_warnings = ['myst.header']  # a page may go from # to ###

# Notebooks: what is stored in them; nothing runs.
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
nb_ipywidgets_js = {}
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = 'Imports'  # the only cells that are folded
myst_enable_extensions = ['dollarmath', 'colon_fence', 'attrs_block']
myst_heading_anchors = 4
myst_heading_slug_func = 'mathml.slug'
myst_dmath_double_inline = True
myst_links_external_new_tab = False
html_math_renderer = 'mathml'
add_module_names = False
python_maximum_signature_line_length = 100

html_theme = 'sphinx_book_theme'
html_title = CFG['title']
html_favicon = 'icon.svg'
html_static_path = ['static']
html_css_files = ['book.css']
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None
html_context = dict(default_mode='auto')  # dark where the reader's system is
html_theme_options = dict(
    repository_url=CFG['git_url'], use_repository_button=True, use_download_button=False, use_fullscreen_button=False,
    home_page_in_toc=True, show_toc_level=2,
    navbar_persistent=[], pygments_light_style='a11y-high-contrast-light',
    pygments_dark_style='a11y-high-contrast-dark')
