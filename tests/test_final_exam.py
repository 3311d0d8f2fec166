"The examination that nothing was chosen by: no training file holds its questions, and its answers are the taught ones."
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from scclm.final_exam import FINAL_ASKS, FINAL_CHAT, FINAL_TOPICS, exact_final, final_questions, final_unknown
from scclm.runs import require, run_path
from scclm.sample_facts import RELATIONS, facts
from scclm.sample_unknown import TEST_TOPICS, TOPICS, letters

def stored_questions(name):
    "Prompts of a parquet file of the course."
    return pq.read_table(require(run_path(*name.split('/')), 'clean'))['prompt'].to_pylist()

FILES = 'data/train.parquet data/sft_train.parquet data/valid.parquet data/heldout.parquet dpo/train.parquet'.split()

@pytest.mark.parametrize('name', FILES)
def test_no_file_of_the_course_holds_a_question(name):
    asked = {letters(q.prompt) for q in final_questions()} | {letters(q) for q in final_unknown()}
    assert [q for q in stored_questions(name) if letters(q) in asked] == []

def test_the_answers_are_those_that_are_taught():
    taught = Counter(zip(stored_questions('data/heldout.parquet'),
                         pq.read_table(run_path('data', 'heldout.parquet'))['response'].to_pylist()))
    answers = {answer for _, answer in taught}
    assert {q.response for q in final_questions()} == answers

def test_every_relation_is_asked_in_two_new_ways():
    assert FINAL_ASKS.keys() == RELATIONS.keys() - {'chat'}
    assert FINAL_CHAT.keys() == {f.subject for f in facts('chat')}
    for name, asks in FINAL_ASKS.items():
        known = RELATIONS[name].asks + RELATIONS[name].reserved + RELATIONS[name].brief
        assert 2 <= len(set(asks)) == len(asks) <= 3 and not set(map(letters, asks)) & set(map(letters, known)), name

def test_topics_and_words_are_its_own():
    others = [*TOPICS.values(), *TEST_TOPICS.values()]
    assert not {w for t in FINAL_TOPICS.values() for w in t.words} & {w for t in others for w in t.words}
    assert not {a for t in FINAL_TOPICS.values() for a in t.asks} & {a for t in others for a in t.asks}
    assert len(set(final_unknown())) == 300 and final_unknown() == final_unknown()

@pytest.mark.parametrize('stage', ['pretrain', 'sft', 'dpo'])
def test_the_stored_scores_are_those_of_the_models(stage):
    stored = json.loads(require(run_path('final', 'scores.json'), 'chat').read_text(encoding='utf-8'))
    assert exact_final(stage) == stored[stage]['exact_heldout']
