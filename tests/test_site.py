"""The site: what makes each page, checked on the filter's output; rendered pages too, where Quarto has made them."""
import ast
import importlib.util
import json
import re
from configparser import ConfigParser
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import front
import nbformat
import one_form
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

from scclm.website import (Links, Page, comments_of, docs_of, meaning_of, module_of, raw_folds, raw_output, rows_of,
                           setup_cell, site_code, site_notebook)

ROOT = Path(__file__).resolve().parents[1]
NBS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
NOTEBOOKS = [ROOT/'index.ipynb', *NBS]
CHAPTERS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
RENDERED = sorted((ROOT/'_site').rglob('*.html'))
FENCE = re.compile(r'^ *(?P<f>`{3,})\{=html\}\n(.*?)\n *(?P=f)$', re.M | re.S)
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=[p.stem for p in NOTEBOOKS])

def name_of(path): return path.relative_to(ROOT).as_posix()
def read(path): return json.loads(path.read_text(encoding='utf-8'))
def quarto(): return yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))

def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']

@cache
def page(path): return site_notebook(read(path), name_of(path), ROOT)

def markdown(nb): return '\n\n'.join(''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown')
def sources(nb, kind='code'): return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == kind]

def shown_markdown(nb):
    "Everything that Quarto reads as markdown, outputs too."
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    return '\n\n'.join([markdown(nb), *(''.join(o['data']['text/markdown']) for o in outputs
                                        if 'text/markdown' in o.get('data', {}))])

# What a browser is asked to fetch, and what stays folded

class Reader(HTMLParser):
    "Addresses that a browser fetches on its own, folds with what is in them, ids, tags left open."
    def __init__(self):
        super().__init__()
        self.fetched, self.folds, self.ids, self.open = [], [], [], []
        self.hidden = None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        asks = attrs.get('rel', '') in ('stylesheet', 'preload', 'preconnect', 'icon', 'modulepreload', 'prefetch')
        wanted = ('src', 'data', 'poster', 'srcset') + (('href',) if tag == 'link' and asks else ())
        self.fetched += [v for k, v in attrs.items() if k in wanted and v]
        if 'id' in attrs: self.ids.append(attrs['id'])
        if tag not in ('img', 'br', 'hr', 'link', 'meta', 'input', 'col'): self.open.append(tag)
        if tag == 'details': self.hidden = ''

    def handle_endtag(self, tag):
        if tag in ('td', 'th', 'tr', 'p', 'li') and tag not in self.open: return
        while self.open and self.open.pop() != tag: pass
        if tag == 'summary': self.hidden = ''
        if tag == 'details': self.folds.append((self.hidden or '').strip())

    def handle_data(self, data):
        if self.open[-1:] == ['style']: self.fetched += re.findall(r'["\'(]((?:https?:)?//[^"\')\s]+)', data)
        if self.hidden is not None: self.hidden += data

def parsed(text):
    reader = Reader()
    reader.feed(text)
    return reader

def foreign(addresses): return [a for a in addresses if re.match(r'\s*(https?:)?//', a)]

@each_notebook
def test_no_page_asks_a_foreign_host(path):
    nb = page(path)
    kinds = {k for c in nb['cells'] for o in c.get('outputs', []) for k in o.get('data', {})}
    assert not kinds & {'text/html', 'application/javascript', 'application/vnd.jupyter.widget-view+json'}
    text = shown_markdown(nb)
    for _, block in FENCE.findall(text): assert not foreign(parsed(block).fetched)
    left = FENCE.sub('', re.sub(r'^ *```.*?^ *```$', '', text, flags=re.M | re.S))
    assert not re.findall(r'!\[[^\]]*\]\((?:https?:)?//', left)
    assert not foreign(parsed(re.sub(r'`[^`\n]*`', '', left)).fetched)

def test_the_parser_sees_what_fetches():
    bad = parsed('<script src="//a.b/c.js"></script><img src=x.png><link rel="stylesheet" href="https://d.e/f.css">'
                 '<style>@import url("https://g.h/i");</style><a href="https://j.k">l</a>')
    assert foreign(bad.fetched) == ['//a.b/c.js', 'https://d.e/f.css', 'https://g.h/i']
    assert parsed('<details><summary>答案</summary></details>').folds == ['']

@pytest.mark.parametrize('path', RENDERED or [None], ids=lambda p: p and p.name)
def test_rendered_pages_ask_no_foreign_host(path):
    "Of what `make docs` has made; where Quarto is not at hand there is nothing to look at."
    if path is None: pytest.skip('no _site/ here: `make docs` makes it, and needs Quarto')
    reader = parsed(path.read_text(encoding='utf-8'))
    assert not foreign(reader.fetched) and '' not in reader.folds

def test_rendered_styles_ask_no_foreign_host():
    "The same of their styles."
    if not RENDERED: pytest.skip('no _site/ here: `make docs` makes it, and needs Quarto')
    for css in (ROOT/'_site').rglob('*.css'):
        assert not re.search(r'@import[^;]*//|url\(["\']?(https?:)?//', css.read_text(encoding='utf-8')), css.name

@each_notebook
def test_folds_hold_what_they_hide(path):
    blocks = [block for _, block in FENCE.findall(shown_markdown(page(path))) if '<details' in block]
    text = ''.join(''.join(c['source']) for c in read(path)['cells'] if c['cell_type'] == 'markdown')
    wanted = len(re.findall(r'^ *<details', text, re.M))
    readers = [parsed(b) for b in blocks]
    assert all(not r.open for r in readers), 'a tag is not closed'
    said = [re.sub(r'<(pre|code)\b.*?</\1>', '', b, flags=re.S) for b in blocks if 'class="interface"' not in b]
    marks = r'\]\([^)\s]+\)|\$[^$\n]+\$|\*\*[^*\n]+\*\*|`[^`\n]+`'
    assert [re.search(marks, s)[0] for s in said if re.search(marks, s)] == [], 'markdown in a raw block'
    targets = [t for b in blocks for t in re.findall(r'<a href="([^":#]+)"', b)]
    assert [t for t in targets if not (path.parent/unquote(t)).exists()] == []
    folds = [f for r in readers for f in r.folds]
    assert len(folds) == wanted + any('class="interface"' in b for b in blocks) and all(folds)

def test_a_fold_keeps_its_place_in_a_list():
    text = raw_folds('1. 几？\n\n   <details><summary>答案</summary>三。\n   四。</details>\n\n2. 又？')
    lines = text.split('\n')
    assert lines[2:7] == ['   ```{=html}', '   <details><summary>答案</summary>三。', '   四。</details>', '   ```', '']

def test_code_in_a_fold_keeps_its_indents():
    code = '<details><summary>答案</summary><pre>def f():\n    return 1\n</pre></details>'
    assert f'```{{=html}}\n{code}\n```' in raw_folds(code)
    inside = raw_folds('1. 几？\n\n' + '\n'.join('   ' + line for line in code.split('\n')))
    assert '\n       return 1\n' in inside

def test_outputs_of_html_become_raw_blocks():
    table = {'data': {'text/html': ['<style scoped>x</style>\n', '<table></table>'], 'text/plain': 'x'}}
    made = raw_output(table)['data']
    assert set(made) == {'text/plain', 'text/markdown'} and '<style' not in made['text/markdown']
    picture = {'data': {'image/png': 'x'}}
    assert raw_output(picture) is picture

def test_the_style_sheet_and_the_options():
    scss, conf = (ROOT/'site.scss').read_text(encoding='utf-8'), quarto()
    head = scss.split('/*-- scss:rules --*/')[0]
    assert '$web-font-path: false;' in head and '@import' not in scss and 'url(' not in scss
    html = conf['format']['html']
    for theme in html['theme'].values(): assert 'site.scss' in theme
    assert html['html-math-method'] == 'mathml' and html['respect-user-color-scheme'] is True
    assert html['code-overflow'] == 'scroll' and html['grid']['body-width'] == '860px'
    assert conf['execute']['enabled'] is False and conf['ipynb-filters'] == ['python -m scclm.website']

# Addresses and the list of pages

def hrefs(x):
    "Every page that a part of the sidebar names."
    if isinstance(x, str): yield x
    elif isinstance(x, list): yield from (h for e in x for h in hrefs(e))
    elif isinstance(x, dict): yield from (h for k in ('href', 'contents', 'file') if k in x for h in hrefs(x[k]))

def test_the_site_has_every_notebook():
    site = quarto()['website']
    assert set(hrefs(site['sidebar'])) == {name_of(p) for p in NBS}
    tops = [h for h in hrefs(site['navbar']['left'])]
    assert all((ROOT/h).exists() for h in tops) and 'index.ipynb' in tops
    card = quarto()['image']
    assert card.startswith('/') and (ROOT/card[1:]).exists() and (ROOT/site['favicon']).exists()
    ignored = (ROOT/'.gitignore').read_text(encoding='utf-8').split('\n')
    assert {'/.quarto/', '**/*.quarto_ipynb'} <= set(ignored), '`quarto render` would add the line itself'

def test_addresses_come_from_settings():
    cfg, site = settings(), quarto()['website']
    assert site['site-url'] == cfg['doc_host'] + cfg['doc_baseurl']
    assert site['repo-url'] == cfg['git_url'] and site['repo-branch'] == cfg['branch']
    assert [x['href'] for x in site['navbar']['right']] == [cfg['git_url']]

def anchors(path):
    "Ids that a page has: given ones, those of its headings as Pandoc makes them."
    text = shown_markdown(page(path))
    given = re.findall(r'\{[^}\n]*#([^\s}]+)[^}\n]*\}', text)
    ids = [i for _, block in FENCE.findall(text) for i in parsed(block).ids]
    heads = re.findall(r'^#+ +(.+?) *$', FENCE.sub('', text), re.M)
    return {*given, *ids, *(slug(h) for h in heads)}

def slug(heading):
    "The id that Pandoc gives a heading."
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)|[`*]', r'\1', heading).lower()
    return re.sub(r'^[^a-z\u4e00-\u9fff]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text)))

LINK = re.compile(r'(?<!!)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)')

@each_notebook
def test_links_anchors_and_images_are_there(path):
    text = FENCE.sub('', re.sub(r'^ *```.*?^ *```$', '', markdown(page(path)), flags=re.M | re.S))
    text = re.sub(r'(?<!`)`[^`\n]+`(?!\])', '', text)
    for link, image in LINK.findall(text):
        target, _, anchor = (link or image).partition('#')
        if re.match(r'\w+:', target): continue
        place = (path.parent/unquote(target)).resolve() if target else path
        assert place.exists(), f'{link or image} leads nowhere'
        if anchor and place.suffix == '.ipynb': assert unquote(anchor) in anchors(place), f'{link}: no such anchor'

@each_notebook
def test_the_title_block(path):
    block = sources(page(path), 'raw')[0]
    head = yaml.safe_load(block.strip('-'))
    assert head['title'] and re.search('[a-z]', head['subtitle']) and head['hide-description'] is True
    said = head.get('description', '')
    assert re.search('[\u4e00-\u9fff]{4}', said), 'the first cell needs a Chinese sentence for search engines'
    assert len(said) <= 150 and not re.search(r'\]\(|<[a-z/]|\*\*', said), said

# The lesson on the page

@each_notebook
def test_the_filter_keeps_the_lesson(path):
    before, after = read(path), page(path)
    nbformat.validate(nbformat.from_dict(after))
    outputs = [[c for c in nb['cells'] if c.get('outputs')] for nb in (before, after)]
    assert len(outputs[0]) == len(outputs[1])
    code = '\n'.join(sources(after))
    assert not re.search(r'^#\| *(export|default_exp)', code, re.M)
    assert not [s for s in sources(after) if s.startswith('# Colab and Kaggle')]
    exported = [s for s in sources(before) if re.search(r'^#\| *export', s, re.M)]
    lines = {line.strip() for s in exported for line in s.split('\n') if not line.startswith('#|')}
    assert lines <= {line.strip() for line in code.split('\n')} | {''}

@each_notebook
def test_imports_and_helpers_are_folded(path):
    for source in sources(page(path)):
        if 'code-fold: true' in source or re.search(r'^\s*[%!]', source, re.M): continue
        body = ast.parse(source).body
        assert not body or not all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body), source
        imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert len(imports) < max(3, len(body) - len(imports)), source
        private = [n for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith('_')]
        assert not body or len(private) < len(body), source

def test_what_is_folded_and_how():
    assert site_code('#| export\nimport os') == '#| code-fold: true\n#| code-summary: "导入"\nimport os'
    assert site_code('#| code-fold: true\nimport os') == site_code('import os')
    assert site_code('#| code-fold: true\nx = 1') == '#| code-fold: true\nx = 1'
    assert site_code('#| export\ndef f(): pass') == 'def f(): pass'
    assert site_code('%cd x\nimport os') == '%cd x\nimport os'

@pytest.mark.parametrize('path', NBS, ids=[p.stem for p in NBS])
def test_chapters_and_names_are_links(path):
    text = FENCE.sub('', re.sub(r'^ *```.*?^ *```$', '', markdown(page(path)), flags=re.M | re.S))
    plain = re.sub(r'!?\[[^\]]*\]\([^)]*\)|^#.*$|<[^>]+>', '', text, flags=re.M)
    own = path.name[:2]
    folds = [b for _, b in FENCE.findall(markdown(page(path))) if '<details' in b and 'class="interface"' not in b]
    folded = re.sub(r'<(a|pre|code)\b.*?</\1>|<[^>]+>', '', '\n'.join(folds), flags=re.S)
    several = [n for text in (plain, folded) for m in re.findall(r'第 ?(\d\d[\d、和或到至– ]*)章', text)
               for n in re.findall(r'\d\d', m)]
    assert [n for n in several if n != own and n <= '09'] == []

def test_links_of_several_chapters_and_of_calls():
    pages = [Page('nbs/05_a.ipynb', 'a', '', ''), Page('nbs/06_b.ipynb', 'b', '', '')]
    places = {'scclm.a': 'nbs/05_a.ipynb', 'scclm.b': 'nbs/06_b.ipynb', 'fit': 'nbs/05_a.ipynb#fit'}
    def linked(text, path='nbs/appendix/x.ipynb'): return Links(path, pages, places)(text)
    assert linked('第 05 章') == '[第 05 章](../05_a.ipynb)' and linked('第 07 章') == '第 07 章'
    assert linked('第 05、06 章') == '第 [05](../05_a.ipynb)、[06](../06_b.ipynb) 章'
    assert linked('第 05 和 06 章', 'nbs/05_a.ipynb') == '第 05 和 [06](06_b.ipynb) 章'
    assert linked('<details>第 05、06 章<code>第 05 章</code></details>') == (
        '<details>第 <a href="../05_a.ipynb">05</a>、<a href="../06_b.ipynb">06</a> 章<code>第 05 章</code></details>')
    assert linked('`fit(model, data)` `fit()`') == '[`fit(model, data)`](../05_a.ipynb#fit) `fit()`'
    assert linked('`scclm.a.fit`') == '[`scclm.a.fit`](../05_a.ipynb#fit)'
    assert linked('`scclm.b`') == '[`scclm.b`](../06_b.ipynb)'
    assert linked('`scclm.b.fit`') == '`scclm.b.fit`', 'another one of that name'

def test_the_glossary_leads_to_chapters():
    text = markdown(page(ROOT/'nbs'/'glossary.ipynb'))
    rows = [line for line in text.split('\n') if line.startswith('|') and re.search(r'\d\d', line.split('|')[-2])]
    assert len(rows) > 50 and not [r for r in rows if not re.search(r'\[\d\d\]\(\d\d_\w+\.ipynb\)', r.split('|')[-2])]

def words_of(path):
    "The prose of a notebook in lower case, without the addresses of its links."
    return re.sub(r'\]\([^)]*\)', ']', markdown(read(path))).lower()

def glossary_rows():
    "Names, Chinese and English, and the notebooks that a row of the glossary names."
    for line in markdown(read(ROOT/'nbs'/'glossary.ipynb')).split('\n'):
        if not line.startswith('| ') or line.startswith('| 中文'): continue
        chinese, english, _, places = (x.strip() for x in line.strip('|').split('|'))
        names = [*chinese.split('、'), *re.sub(r'[()]', '', english).split(', ')]
        yield names, re.findall(r'\d\d|appendix/\w+\.ipynb', places)

def test_the_glossary_is_true():
    "A reader who follows a row finds the word; one thing has one name."
    rows, chapters = list(glossary_rows()), {p.name[:2]: p for p in CHAPTERS}
    assert len(rows) > 100 and all(places for _, places in rows)
    lost = [(names[0], place) for names, places in rows for place in places
            if not any(name.lower() in words_of(chapters.get(place, ROOT/'nbs'/place)) for name in names)]
    assert lost == []
    assert [p.name for p in NOTEBOOKS if '分词器' in words_of(p)] == [], 'a tokenizer is a 词元化器'

# The interface

INDEX = importlib.util.spec_from_file_location('modidx', ROOT/'scclm'/'_modidx.py')

def nbdev_index():
    module = importlib.util.module_from_spec(INDEX)
    INDEX.loader.exec_module(module)
    return module.d['syms']

@pytest.mark.parametrize('path', [p for p in NBS if module_of(read(p))], ids=lambda p: p.stem)
def test_the_interface_shows_all_that_is_public(path):
    module = module_of(read(path))
    box = next(b for _, b in FENCE.findall(markdown(page(path))) if 'class="interface"' in b)
    ids = set(parsed(box).ids)
    prefix = f'scclm.{module}.'
    head = yaml.safe_load(sources(page(path), 'raw')[0].strip('-'))
    for name, (address, _) in nbdev_index().get(f'scclm.{module}', {}).items():
        parts = name.removeprefix(prefix).split('.')
        file, _, anchor = address.partition('#')
        assert f'/{file}' in head['aliases'], 'a page that the index of nbdev names'
        if not any(p.startswith('_') for p in parts): assert anchor in ids, name
    lines = (ROOT/'scclm'/f'{module}.py').read_text(encoding='utf-8').split('\n')
    shown = re.findall(rf'<h4 id="([^"]+)".*?{module}\.py#L(\d+)-L(\d+)"', box)
    assert len(shown) == len(ids)
    for anchor, start, end in shown:
        name = re.escape(anchor.split('.')[-1].rstrip('2')) # a 2 tells apart what differs in capitals
        assert re.search(rf'(def|class) +{name}\w*\b', lines[int(start) - 1], re.I), anchor
        assert int(end) >= int(start)

@pytest.mark.parametrize('path', sorted((ROOT/'scclm').glob('[a-z]*.py')), ids=lambda p: p.stem)
def test_every_row_of_the_interface_has_its_meaning(path):
    text = path.read_text(encoding='utf-8')
    docs, notes = docs_of(ast.parse(text)), comments_of(text)
    assert [d.name for d in docs if not ast.get_docstring(d.node)] == []
    assert [(d.name, name) for d in docs for name, _, _, said in rows_of(d.node, notes) if not said] == []

def test_a_method_has_its_table():
    box = next(b for _, b in FENCE.findall(markdown(page(ROOT/'nbs'/'08_chat.ipynb'))) if 'class="interface"' in b)
    part = box.split('id="chatbot.answer"')[1].split('<h4')[0]
    assert '<code>texts</code>' in part and '<code>返回</code>' in part
    node = next(d.node for d in docs_of(ast.parse((ROOT/'scclm'/'chat.py').read_text(encoding='utf-8')))
                if d.name == 'ChatBot.answer')
    assert len(re.findall('<tr><td>', part)) == len(node.args.args) - 1 + bool(node.args.vararg) + 1

# Results, home page, other pages

def results(): return {p.stem: read(p) for p in sorted((ROOT/'benchmarks'/'results').glob('*.json'))}

def once(pairs):
    "An object whose keys stand once: of two entries of one name the first would be lost."
    assert len(dict(pairs)) == len(pairs), [k for k, _ in pairs]
    return dict(pairs)

def test_every_figure_has_its_meaning():
    text = (ROOT/'benchmarks'/'meanings.json').read_text(encoding='utf-8')
    meanings = json.loads(text, object_pairs_hook=once)
    assert one_form.corner_marks(text) == text
    for name, result in results().items():
        assert meanings[name]['title'] and meanings[name]['about'].endswith('。')
        for row in result['rows']:
            better, said = meaning_of(meanings, name, row['what'])
            assert better in ('higher', 'lower', '') and len(said) >= 5, (name, row['what'])

def test_the_page_of_results_shows_every_row():
    text = markdown(page(ROOT/'nbs'/'results.ipynb'))
    for name, result in results().items():
        part = text.split(f'{{#{name}}}')[1].split('\n## ')[0]
        assert part.count('<tr><td>') == len(result['rows'])
        for row in result['rows']:
            of = result | row
            assert f"{of['date']}，提交 `{of['commit']}`，{of['machine']}。" in part, row['what']
    assert text.index('{#seeds}') == min(text.index(f'{{#{name}}}') for name in results())

def test_the_home_page():
    text = markdown(page(ROOT/'index.ipynb'))
    assert text.index('class="talk"') < text.index('make course') < text.index('front.svg') < text.index('.cards')
    for kind in ('答对了', '没教过，它说不知道', '答错了：应该是'): assert kind in text
    for chapter in CHAPTERS: assert f'(nbs/{chapter.name})' in text
    assert settings()['git_url'] in text and '<!--' not in text and '![](' not in text
    assert len(re.findall(r'\[!\[[^\]]{20,}\]\(nbs/figures/', text)) == len(CHAPTERS), 'pictures say what they show'

def test_numbers_of_the_home_pages_are_those_of_the_files():
    "They are typed by hand: `make front` does not reach them."
    text = {name: markdown(read(ROOT/name)) for name in ('index.ipynb', 'nbs/index.ipynb')}
    minutes = sum(c['seconds'] for c in read(ROOT/'benchmarks'/'course.json')['chapters'])/60
    folder = next(r['ours'] for r in results()['page']['rows'] if r['what'] == 'folder')
    assert '十来分钟' in text['index.ipynb'] and '一刻钟' in text['nbs/index.ipynb'] and 12 < minutes < 18
    assert f'（{folder:.0f} MB）' in text['index.ipynb']
    assert f"{front.base_cost()['n_params']/1e8:.4g} 亿参数" in text['nbs/index.ipynb']
    for t in text.values(): assert f"Python {settings()['min_python']} 或更新" in t

def test_the_run_on_real_text_is_at_the_front():
    real = 'nbs/appendix/real_text.ipynb'
    assert real in hrefs(quarto()['website']['navbar']['left'])
    assert f']({real})' in markdown(read(ROOT/'index.ipynb'))
    assert '](appendix/real_text.ipynb)' in markdown(read(ROOT/'nbs'/'results.ipynb'))

def test_the_page_that_is_not_there():
    head = yaml.safe_load((ROOT/'404.qmd').read_text(encoding='utf-8').split('---')[1])
    assert head['search'] is False and head['hide-description'] is True and '404.qmd' in quarto()['project']['render']

# Colab and Kaggle

@pytest.mark.parametrize('path', [p for p in NBS if sources(read(p))], ids=lambda p: p.stem)
def test_where_to_run_it(path):
    nb, cfg, name = read(path), settings(), name_of(path)
    code = [s for s in sources(nb) if not re.match(r'#\| *default_exp', s)]
    assert code[0] == setup_cell(cfg['git_url'], path.relative_to(ROOT).parent.as_posix())
    links = markdown(page(path)).split(':::')[1]
    project = cfg['git_url'].removeprefix('https://github.com/')
    assert f'colab.research.google.com/github/{project}/blob/{cfg["branch"]}/{name}' in links
    assert f'kaggle.com/kernels/welcome?src={cfg["git_url"]}/blob/{cfg["branch"]}/{name}' in links

@pytest.mark.parametrize('where, commands', [('COLAB_RELEASE_TAG', 3), ('KAGGLE_KERNEL_RUN_TYPE', 3), ('HOME', 0)])
def test_the_first_cell_installs_only_there(where, commands, monkeypatch):
    for name in ('COLAB_RELEASE_TAG', 'KAGGLE_KERNEL_RUN_TYPE'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(where, 'x')
    said = []
    class Shell:
        def system(self, text): said.append(text)
        def run_line_magic(self, name, line): said.append(f'{name} {line}')
    exec(TransformerManager().transform_cell(setup_cell('https://github.com/a/b', 'nbs')), {'get_ipython': Shell})
    assert len(said) == commands
    if said: assert [s.split()[0] for s in said] == ['test', 'pip', 'cd'] and 'https://github.com/a/b' in said[0]

HIDDEN = re.compile(r'^#\| *(code-fold: true|hide|default_exp)', re.M)

def opening(nb):
    "The markdown before the first code that a reader sees open."
    cells = [(c['cell_type'], ''.join(c['source'])) for c in nb['cells']]
    first = next(i for i, (kind, s) in enumerate(cells) if kind == 'code' and not HIDDEN.search(s))
    return '\n\n'.join(s for kind, s in cells[:first] if kind == 'markdown')

@pytest.mark.parametrize('path', CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_opens_with_a_drawn_figure(path):
    assert re.search(r'!\[.{20,}\]\(figures/\w+\.svg\)', opening(read(path)))

def test_an_opening_without_a_figure_is_seen():
    figure, code = '![a figure that says what it shows](figures/a.svg)', dict(cell_type='code', source=['1 + 1'])
    why, shown = (dict(cell_type='markdown', source=[text]) for text in ('# Why?', figure))
    late = dict(cells=[why, code, shown])
    assert 'figures/' not in opening(late)
    late['cells'][1] = dict(code, source=['#| code-fold: true\n', '1 + 1'])
    assert figure in opening(dict(cells=[*late['cells'], code]))

# One form

@each_notebook
def test_one_form(path):
    assert one_form.one_form(path, ROOT) == read(path), 'run `make form`'

@each_notebook
def test_titles_and_lines(path):
    nb = read(path)
    title = ''.join(nb['cells'][0]['source']).split('\n')[0]
    if path in CHAPTERS: assert re.fullmatch(rf'# {path.name[:2]} .+：.+？', title)
    elif 'solutions' in path.stem: assert title == f'# 练习答案 {path.stem[-2:]}'
    elif path.parent.name == 'appendix': assert title.startswith('# 附录：')
    exercises = re.search(r'^##+ .*练习$(.*?)(?=^## |\Z)', '\n'.join(sources(nb, 'markdown')), re.M | re.S)
    if exercises: assert set(re.findall(r'^([ \t]*)<details', exercises[1], re.M)) <= {'   '}
    assert [line for s in sources(nb) for line in s.split('\n') if len(line) > 100] == []
    outputs = [''.join(o.get('text', '')) + ''.join(map(str, o.get('data', {}).values()))
               for c in nb['cells'] for o in c.get('outputs', [])]
    elsewhere = re.compile(r'\bruns_\w+/|SCCLM_\w+ is set')
    assert not [o for o in outputs if elsewhere.search(o)], 'stored outputs come from `make course`'

def test_the_form_changes_words_only():
    assert one_form.corner_marks('“甲‘乙’”，`“丙”`，<code>“丁”</code>') == '「甲『乙』」，`“丙”`，<code>“丁”</code>'
    text = '1. 问？\n\n<details><summary>答案</summary>答\n答</details>\n\n2. 又？'
    assert one_form.indented_answers(text).split('\n')[2:4] == ['   <details><summary>答案</summary>答', '   答</details>']
    english = '# 题\n> Sum.\n\n*' + 'An abstract with `code` & more. '*3 + '*\n\n正文。'
    made = one_form.first_cell(english)
    head = '# 题\n\n> Sum.\n\n正文。\n\n<details><summary>English abstract</summary>An abstract with <code>'
    assert made.startswith(head)
    assert '&amp; more' in made and one_form.first_cell(made) == made
