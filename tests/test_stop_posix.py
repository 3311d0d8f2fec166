"Signals that only POSIX systems have: SIGKILL at random instants, SIGTERM to the command line."
import json, signal, subprocess, sys, time

from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from scclm.trainer import newest_good
from test_trainer import ROOT, course_runs, home, scclm  # noqa: F401

def test_killed_at_random_instants_ends_with_the_same_bytes():
    out = subprocess.run([sys.executable, ROOT/'benchmarks'/'kill.py', '--kills', '10', '--seed', str(int(time.time()))], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.splitlines()[-1] == '10 kills, 10 identical', out.stdout + out.stderr

def test_command_line_stops_on_sigterm_and_goes_on(course_runs):  # noqa: F811
    args = ['pretrain', '--steps', '150', '--save-every', '1000', '--log-every', '1', '--eval-every', '0', '--budget-tok', '256']
    p = scclm(course_runs, *args)
    log = course_runs/'tiny/pretrain/log.jsonl'
    while p.poll() is None and not (log.exists() and log.read_text().count('\n') >= 3): time.sleep(.02)
    p.send_signal(signal.SIGTERM)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 143 and 'stopped by SIGTERM at step' in out, err
    assert newest_good(course_runs/'tiny/pretrain') and not (course_runs/'tiny/pretrain/model').exists()
    p = scclm(course_runs, *args); out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    assert json.loads(out[out.index('{'):])['steps'] == 150
    folder = course_runs/'tiny/pretrain/model'
    assert len(AutoTokenizer.from_pretrained(folder)) == AutoModelForSeq2SeqLM.from_pretrained(folder).config.vocab_size

