"""Downloads from a server that breaks off, lies, forgets ranges, trickles and changes its files:
what arrives is one whole version, or nothing under its name."""
import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from fetch_toys import Mood, Shop, blob_id, sha, shop_open
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scclm.download import Patience, Remote, digest_of, download, is_archive, part_path, unpack

QUICK = Patience(tries=3, pause_s=.001, timeout_s=5, progress=False)
DATA = bytes(range(251))*40 # no two pieces alike at one distance
DAY = 'Fri, 01 Sep 2023 00:00:00 GMT'

@pytest.fixture
def shop():
    with shop_open() as shop:
        shop.files['/a'] = DATA
        yield shop

def get(shop:Shop, folder:Path, patience:Patience=QUICK, **more)->bytes:
    "Download /a."
    download(Remote('a', f'{shop.url}/a', **more), folder/'a', patience)
    assert sorted(p.name for p in folder.iterdir()) == ['a'], 'no half file, no note is left'
    return (folder/'a').read_bytes()

def fails(shop:Shop, folder:Path, error:type, words:str, patience:Patience=QUICK, **more)->int:
    "Download /a in vain; the size of the half file that is left."
    with pytest.raises(error, match=words): get(shop, folder, patience, **more)
    assert not (folder/'a').exists()
    part = part_path(folder/'a')
    return part.stat().st_size if part.exists() else 0

def test_a_file_that_comes_whole(shop, tmp_path):
    assert get(shop, tmp_path) == DATA and shop.ranges('/a') == ['']
    assert get(shop, tmp_path, size=len(DATA), digest=f'sha256:{sha(DATA)}') == DATA

def test_it_goes_on_where_it_broke_off(shop, tmp_path):
    shop.moods['/a'] = [Mood(stop=700), Mood(stop=1), Mood()]
    assert get(shop, tmp_path) == DATA
    assert shop.ranges('/a') == ['', 'bytes=700-', 'bytes=701-']

def test_progress_resets_the_count_of_tries(shop, tmp_path):
    shop.files['/a'] = data = DATA*100
    shop.moods['/a'] = [Mood(stop=2**17)]
    assert get(shop, tmp_path) == data and len(shop.log) > 2*QUICK.tries

def test_half_a_file_waits_for_the_next_run(shop, tmp_path):
    shop.moods['/a'] = [Mood(stop=700), Mood(503)]
    assert fails(shop, tmp_path, OSError, 'gave up after 3 tries.*503.*run it again') == 700
    shop.moods['/a'], shop.log[:] = [Mood()], []
    assert get(shop, tmp_path) == DATA and shop.ranges('/a') == ['bytes=700-']

def test_a_whole_half_file_is_only_checked(shop, tmp_path):
    "Killed between the last byte and the renaming."
    shop.moods['/a'] = [Mood(stop=700), Mood(503)]
    fails(shop, tmp_path, OSError, 'gave up')
    part_path(tmp_path/'a').write_bytes(DATA)
    shop.log.clear()
    assert get(shop, tmp_path) == DATA and shop.log == []

def test_a_length_too_long(shop, tmp_path):
    shop.moods['/a'] = [Mood(length=len(DATA) + 5, ranges=False)]
    fails(shop, tmp_path, OSError, 'gave up after 3 tries')

def test_a_length_too_short_is_found_by_what_was_published(shop, tmp_path):
    shop.moods['/a'] = [Mood(length=500)]
    assert fails(shop, tmp_path, ValueError, '500 bytes, expected 10040; it is removed', size=len(DATA)) == 0
    assert fails(shop, tmp_path, ValueError, 'hash is git:', digest=f'git:{blob_id(DATA)}') == 0

def test_a_server_that_forgets_ranges(shop, tmp_path):
    shop.moods['/a'] = [Mood(stop=700), Mood(ranges=False)]
    assert get(shop, tmp_path) == DATA and shop.ranges('/a') == ['', 'bytes=700-']

def test_a_server_that_forgets_ranges_and_always_breaks_off_is_left(shop, tmp_path):
    shop.files['/a'] = DATA*100
    shop.moods['/a'] = [Mood(stop=500_000, ranges=False)]
    fails(shop, tmp_path, OSError, 'gave up after 3 tries')
    assert len(shop.log) <= 2*QUICK.tries

@pytest.mark.parametrize('status, words', [(404, '404 Not Found: it is not there'), (410, 'it is gone'),
    (401, 'wants a login'), (403, 'wants a login'), (418, 'expected a file')])
def test_what_will_not_pass_is_asked_once(shop, tmp_path, status, words):
    shop.moods['/a'] = [Mood(status)]
    fails(shop, tmp_path, OSError, words)
    assert len(shop.log) == 1

@pytest.mark.parametrize('status', [408, 425, 429, 500, 502, 503, 504, 520, 524])
def test_what_may_pass_is_asked_again(shop, tmp_path, status):
    shop.moods['/a'] = [Mood(status), Mood(status, headers=(('Retry-After', '0'),)), Mood()]
    assert get(shop, tmp_path) == DATA and len(shop.log) == 3

def test_retry_after_is_obeyed(shop, tmp_path):
    shop.moods['/a'] = [Mood(429, headers=(('Retry-After', '1'),)), Mood()]
    start = time.monotonic()
    assert get(shop, tmp_path) == DATA and time.monotonic() - start >= 1
    shop.moods['/a'] = [Mood(429, headers=(('Retry-After', '86400'),))]
    (tmp_path/'a').unlink()
    fails(shop, tmp_path, OSError, '429.*asks to wait 86400 s: run it again then')
    shop.moods['/a'] = [Mood(429, headers=(('Retry-After', DAY),)), Mood()] # long ago
    assert get(shop, tmp_path) == DATA

def test_a_trickle_is_given_up_and_kept(shop, tmp_path):
    shop.moods['/a'] = [Mood(pause_s=.02)]
    hasty = QUICK._replace(tries=2, timeout_s=1.)
    kept = fails(shop, tmp_path, OSError, r'gave up after 2 tries: only \d+ bytes in', hasty)
    assert kept > 0
    shop.moods['/a'] = [Mood()]
    shop.log.clear()
    assert get(shop, tmp_path) == DATA and shop.ranges('/a')[0].startswith('bytes=')

def test_silence_is_given_up(shop, tmp_path):
    shop.moods['/a'] = [Mood(pause_s=2)]
    fails(shop, tmp_path, OSError, 'gave up after 2 tries.*timed out', QUICK._replace(tries=2, timeout_s=.2))

def test_nobody_answers(tmp_path):
    with shop_open() as shop: pass
    fails(shop, tmp_path, OSError, 'gave up after 3 tries: http://127.0.0.1')

OTHER = bytes(reversed(DATA)) # as long

TAGS = [dict(), dict(judge=False), dict(etag='W/"1"', modified=DAY), dict(etag=None, modified=DAY), dict(etag=None)]

@pytest.mark.parametrize('tags', TAGS, ids=['strong', 'unconditional', 'weak', 'date', 'none'])
def test_a_file_that_changed_between_two_tries_is_not_glued(shop, tmp_path, tags):
    shop.moods['/a'] = [Mood(stop=700, **tags), Mood(503)]
    fails(shop, tmp_path, OSError, 'gave up')
    shop.files['/a'] = OTHER
    later = {'etag': 'W/"2"', 'modified': 'Sat, 02 Sep 2023 00:00:00 GMT'}
    shop.moods['/a'] = [Mood(**tags | {k: v for k, v in later.items() if tags.get(k)})]
    assert get(shop, tmp_path) == OTHER

def test_a_weak_tag_and_the_same_file_go_on(shop, tmp_path):
    shop.moods['/a'] = [Mood(stop=700, etag='W/"1"'), Mood(etag='W/"1"')]
    assert get(shop, tmp_path) == DATA and shop.ranges('/a') == ['', 'bytes=700-']

def test_half_of_another_address_is_dropped(shop, tmp_path):
    shop.moods['/a'] = [Mood(stop=700), Mood(503)]
    fails(shop, tmp_path, OSError, 'gave up')
    shop.files['/b'] = OTHER
    download(Remote('a', f'{shop.url}/b'), tmp_path/'a', QUICK)
    assert (tmp_path/'a').read_bytes() == OTHER and shop.ranges('/b') == ['']

@pytest.mark.parametrize('mood', [Mood(shift=3), Mood(416)], ids=['elsewhere', '416'])
def test_a_part_that_does_not_fit_starts_over(shop, tmp_path, mood):
    shop.moods['/a'] = [Mood(stop=700), mood, Mood()]
    assert get(shop, tmp_path) == DATA and shop.ranges('/a') == ['', 'bytes=700-', '']

def test_a_part_that_nobody_asked_for(shop, tmp_path):
    claim = (('Content-Range', f'bytes 5-{len(DATA) - 1}/{len(DATA)}'),)
    shop.moods['/a'] = [Mood(206, DATA[5:], headers=claim), Mood()]
    assert get(shop, tmp_path) == DATA

def test_bodies_that_are_no_file(shop, tmp_path):
    shop.moods['/a'] = [Mood(headers=(('Content-Type', 'text/html; charset=utf-8'),))]
    fails(shop, tmp_path, ValueError, 'a web page, not a file')
    shop.moods['/a'] = [Mood(headers=(('Content-Encoding', 'gzip'),))]
    fails(shop, tmp_path, ValueError, 'packed as gzip')
    shop.moods['/a'] = [Mood(framed=False)]
    fails(shop, tmp_path, ValueError, 'does not say how long')
    assert get(shop, tmp_path, digest=f'sha256:{sha(DATA)}') == DATA # then the hash tells

def test_chunks(shop, tmp_path):
    shop.moods['/a'] = [Mood(chunked=True, stop=700), Mood(chunked=True)]
    assert get(shop, tmp_path) == DATA

def test_redirects(shop, tmp_path):
    shop.files['/b'] = DATA
    shop.moods['/a'] = [Mood(302, headers=(('Location', '/b'),))]
    assert get(shop, tmp_path) == DATA
    shop.moods['/b'] = [Mood(302, headers=(('Location', '/a'),))]
    (tmp_path/'a').unlink()
    fails(shop, tmp_path, OSError, 'redirects')

def test_no_address(tmp_path):
    for url in ('ftp://x/a', '/a', 'http://'):
        with pytest.raises((OSError, ValueError)): download(Remote('a', url), tmp_path/'a', QUICK)
    assert list(tmp_path.iterdir()) == []

def test_a_disk_too_small_is_said_before(shop, tmp_path):
    shop.moods['/a'] = [Mood(length=10**17)]
    assert fails(shop, tmp_path, OSError, '100000000000000000 bytes to come, .* make room first') == 0

MOODS = st.builds(lambda **fields: Mood(**fields), stop=st.none() | st.integers(0, len(DATA)),
    ranges=st.booleans(), judge=st.booleans(), chunked=st.booleans(),
    etag=st.sampled_from(['by content', None]), shift=st.sampled_from([0, 0, 0, 1]),
    status=st.sampled_from([200, 200, 200, 503, 416]))

@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(MOODS, st.booleans()), max_size=6))
def test_whatever_the_server_does_one_version_arrives(tmp_path_factory, days):
    "Every day one try, in some mood, of one of two versions; at last the server is well."
    folder = tmp_path_factory.mktemp('day')
    with shop_open() as shop:
        for mood, other in days:
            shop.files['/a'], shop.moods['/a'] = OTHER if other else DATA, [mood]
            try: download(Remote('a', f'{shop.url}/a'), folder/'a', QUICK._replace(tries=1))
            except OSError: assert not (folder/'a').exists()
            else:
                assert (folder/'a').read_bytes() in (DATA, OTHER)
                (folder/'a').unlink()
        shop.files['/a'], shop.moods['/a'] = DATA, [Mood()]
        assert get(shop, folder) == DATA

# Processes

CODE = '''
import resource, sys
from pathlib import Path
from scclm.download import Patience, Remote, download
url, target, limit = sys.argv[1:]
if int(limit): resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
try: download(Remote('a', url), Path(target), Patience(progress=False))
except OSError as e: sys.exit(str(e))
'''

def start(shop:Shop, folder:Path, limit:int=0)->subprocess.Popen:
    "Download /a in another process."
    command = [sys.executable, '-c', CODE, f'{shop.url}/a', str(folder/'a'), str(limit)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

if os.name == 'posix':
    def test_killed_in_the_middle_it_goes_on(shop, tmp_path):
        shop.moods['/a'] = [Mood(pause_s=.005)]
        run = start(shop, tmp_path)
        part = part_path(tmp_path/'a')
        while not (part.exists() and part.stat().st_size > 200) and run.poll() is None: time.sleep(.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        have = part.stat().st_size
        assert 200 < have < len(DATA) and not (tmp_path/'a').exists()
        shop.moods['/a'], shop.log[:] = [Mood()], []
        assert get(shop, tmp_path) == DATA and shop.ranges('/a') == [f'bytes={have}-']

    def test_a_full_disk_keeps_what_came(shop, tmp_path):
        "The system refuses to write on, as on a full disk; later it goes on."
        shop.files['/a'] = data = DATA*100
        run = start(shop, tmp_path, 100_000)
        assert 'File too large' in run.communicate()[1] and run.returncode == 1
        assert not (tmp_path/'a').exists() and part_path(tmp_path/'a').stat().st_size == 100_000
        assert get(shop, tmp_path) == data and shop.ranges('/a') == ['', 'bytes=100000-']

# Hashes and archives

@pytest.mark.parametrize('data', [b'', b'hello\n', DATA])
def test_hashes_are_those_of_the_tools(data, tmp_path):
    (tmp_path/'x').write_bytes(data)
    command = ['git', 'hash-object', tmp_path/'x']
    by_git = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert digest_of(tmp_path/'x', 'git') == f'git:{by_git}'
    for kind in ('sha256', 'sha1', 'md5'):
        assert digest_of(tmp_path/'x', kind) == f'{kind}:{hashlib.new(kind, data).hexdigest()}'

FILES = {'中文/训练.json': '{"a": "问"}\n'.encode(), 'b.csv': DATA, 'empty': b''}

def packed(path:Path)->Path:
    "An archive of FILES, and a hidden file."
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
            for name, data in {**FILES, '.DS_Store': b'x'}.items(): z.writestr(name, data)
    else:
        source = path.parent/'source'
        for name, data in {**FILES, '.DS_Store': b'x'}.items():
            (source/name).parent.mkdir(parents=True, exist_ok=True)
            (source/name).write_bytes(data)
        with tarfile.open(path, f"w:{path.suffix.removeprefix('.').replace('tar', '')}") as t: t.add(source, '.')
    return path

@pytest.mark.parametrize('name', ['a.zip', 'a.tar', 'a.tar.gz', 'a.tar.xz', 'a.tar.bz2'])
def test_unpacked_as_packed(name, tmp_path):
    archive = packed(tmp_path/name)
    assert is_archive(archive)
    unpack(archive, tmp_path/'out')
    files = [p for p in (tmp_path/'out').rglob('*') if p.is_file()]
    found = {p.relative_to(tmp_path/'out').as_posix(): p.read_bytes() for p in files}
    assert found == FILES

@pytest.mark.parametrize('name', ['a.zip', 'a.tar.gz', 'a.tar.xz'])
def test_a_damaged_archive(name, tmp_path):
    archive = packed(tmp_path/name)
    data = bytearray(archive.read_bytes())
    data[60:80] = bytes(20)
    archive.write_bytes(data)
    with pytest.raises(ValueError, match='damaged|no regular|inside it'): unpack(archive, tmp_path/'out')

@pytest.mark.parametrize('name', ['../evil', '/evil', 'a/../../evil', '..\\evil', 'C:/evil'])
def test_names_that_lead_out(name, tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(name, 'x')
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        entry = tarfile.TarInfo(name)
        t.addfile(entry)
    with pytest.raises(ValueError, match='expected a name inside it'): unpack(tmp_path/'a.tar', tmp_path/'in'/'out')
    with suppress(ValueError): unpack(tmp_path/'a.zip', tmp_path/'in'/'out') # '/evil': a name inside, as for unzip
    assert not [p for p in tmp_path.rglob('*evil') if (tmp_path/'in'/'out') not in p.parents]
    assert not Path('/evil').exists() and (name == '/evil' or not list(tmp_path.rglob('*evil')))

@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_only_files_are_unpacked_from_tar(kind, tmp_path):
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        entry = tarfile.TarInfo('link')
        entry.type, entry.linkname = kind, '/etc/passwd'
        t.addfile(entry)
    with pytest.raises(ValueError, match="holds 'link', no regular file"): unpack(tmp_path/'a.tar', tmp_path/'out')

def test_only_files_are_unpacked_from_zip(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        link = zipfile.ZipInfo('link')
        link.external_attr = 0o120777 << 16
        z.writestr(link, '/etc/passwd')
    with pytest.raises(ValueError, match="holds 'link', no regular file"): unpack(tmp_path/'a.zip', tmp_path/'out')

def test_a_password_and_a_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('x', 'x')
    data = bytearray((tmp_path/'a.zip').read_bytes())
    for at in (6, data.index(b'PK\x01\x02') + 8): data[at] |= 1
    (tmp_path/'locked.zip').write_bytes(data)
    with pytest.raises(ValueError, match='under a password'): unpack(tmp_path/'locked.zip', tmp_path/'out')
    with tarfile.open(tmp_path/'a.tar', 'w') as t:
        for _ in range(2): t.addfile(tarfile.TarInfo('x'))
    with pytest.raises(ValueError, match="holds 'x' twice"): unpack(tmp_path/'a.tar', tmp_path/'out')

def test_names_of_a_chinese_windows(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('xxxx.json', '{}')
    data = (tmp_path/'a.zip').read_bytes().replace(b'xxxx', '训练'.encode('gbk'))
    (tmp_path/'a.zip').write_bytes(data)
    unpack(tmp_path/'a.zip', tmp_path/'out')
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['训练.json']
