"Package metadata comes from settings.ini; the code in scclm/ is exported from nbs/."
from configparser import ConfigParser
import re
from pathlib import Path
from setuptools import setup

parser = ConfigParser(delimiters=['='])
parser.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
serve = cfg['serve_requirements'].split()
export = cfg['export_requirements'].split()
fetch = cfg['fetch_requirements'].split()
ray = cfg['ray_requirements'].split()

# On PyPI and in the sdist there is no checkout around the README: its links and its picture lead to the repository.
readme = (Path(__file__).parent/'README.en.md').read_text(encoding='utf-8')
readme = re.sub(r'\]\((?!\w+:|#)', f"]({cfg['git_url']}/blob/{cfg['branch']}/", readme)
readme = re.sub(r'src="(?!\w+:)', f"src=\"{cfg['git_url']}/raw/{cfg['branch']}/", readme)

setup(
    name=cfg['lib_name'], version=cfg['version'], license='Apache-2.0',
    description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    long_description=readme,
    long_description_content_type='text/markdown',
    packages=[cfg['lib_path']], package_data={cfg['lib_path']: ['fonts/*', 'page/*', '*.html']},
    include_package_data=True, zip_safe=False,
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={'serve': serve, 'export': export, 'fetch': fetch, 'ray': ray,
        'dev': [*cfg['dev_requirements'].split(), *serve, *export, *fetch, *ray]},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    classifiers=['License :: OSI Approved :: Apache Software License',
                 'Natural Language :: Chinese (Simplified)',
                 *(f'Programming Language :: Python :: 3.{minor}' for minor in (11, 12, 13)),
                 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
)
