"A few hundred folders of odd files, other ones than those of benchmarks/fuzz.py; and the slow count itself."
import pytest
from trainer_toys import load_benchmark

fuzz = load_benchmark('fuzz')

FIRST = 1_000_000 # number of the first folder
EACH, GROUPS = 20, 12

@pytest.mark.parametrize('group', range(GROUPS))
def test_no_traceback_and_the_account_balances(tmp_path, runs, monkeypatch, group):
    monkeypatch.delenv('SCCLM_RAW', raising=False)
    rows = 0
    for seed in range(FIRST + group*EACH, FIRST + (group + 1)*EACH):
        outcome = fuzz.check_folder(seed, tmp_path)
        assert not outcome.problems, f'folder {seed} ({outcome.reader}): ' + '\n'.join(outcome.problems)
        rows += outcome.rows
    assert rows > 100, 'folders without rows show nothing'

def test_every_kind_of_folder_comes_up(tmp_path):
    made = [fuzz.make_folder(seed, tmp_path/str(seed)) for seed in range(FIRST, FIRST + 60)]
    assert {reader for reader, _ in made} == {'clean', 'dpo', 'ie'}
    names = [f.name for _, files in made for f in files]
    assert any('.zip/' in name for name in names) and any(f.rows is None for _, files in made for f in files)

@pytest.mark.parametrize('count, text, n', [
    ('as_lines', '{"a": 1}\n\n  \n{\nx', 3), ('as_list', '[{"a": "}{"}, {"b": {"c": 1}}]', 2),
    ('as_csv', '\na,b\n1,"2\n\n,3"\n4,5\n"open,6\n7,8', 4), ('as_csv', 'a;b\n"x""\n";2\n', 1),
    ('as_docs', '<doc id="1">\nx</doc>\nstray\n<doc id="2">y</doc> ', 3)])
def test_the_slow_count_by_hand(count, text, n):
    assert fuzz.COUNT[count](text) == n
