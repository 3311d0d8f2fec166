"Questions as people type them, questions that nobody taught, and what the chat makes of both."
import io
import math
import random
import re
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import product

import pytest
import torch
from chat_toys import CHARS, byte_tok, char_tok, toy_model, word_tok

from scclm.chat import (ChatBot, Decoding, LoopGuard, chat_widget, close_gaps, loop_closers, processors, read_typed,
    token_chars)
from scclm.chat_exam import (Examinee, forced_answers, form_scores, in_circles, refusal_scores, refusal_starts,
    refused_at, refuses, trade_off)
from scclm.dataset import decode
from scclm.sample_corpus import fact_rows, heldout_rows, sft_rows, unknown_rows
from scclm.sample_facts import facts, phrasings
from scclm.sample_typed import FORMS, SHORT_NAMES, type_as, typed
from scclm.terminal import say
from scclm.text_rules import chat_form, clean_texts, simplify
from scclm.tokenizer import train_bpe
from scclm.sample_unknown import REFUSALS, TEST_TOPICS, TOPICS, is_refusal, strangers, unknown_questions

HELD = [h['prompt'] for h in heldout_rows()]
PLAIN = Decoding(max_new_tok=60, loop_copies=0)
GUARDED = replace(PLAIN, loop_copies=3)

def letters(text): return re.sub(r'[\W_]', '', text)


# ---- one reading of questions

READ = [
    ('浙江省的省会是哪里?', '浙江省的省会是哪里？'), ('浙江省的省会是哪里??', '浙江省的省会是哪里？'),
    (' 浙江省的省会是哪里？ ', '浙江省的省会是哪里？'), ('\t浙江省的省会是哪里？\n', '浙江省的省会是哪里？'),
    ('\u3000浙江省的省会是哪里？\u3000', '浙江省的省会是哪里？'), ('\ufeff浙江省的省会是哪里？', '浙江省的省会是哪里？'),
    ('浙江省的省会是哪里？\u200b', '浙江省的省会是哪里？'), ('浙江省的省會是哪裡？', '浙江省的省会是哪里？'),
    ('「詩仙」指的是誰？', '“诗仙”指的是谁？'), ('「诗仙」指的是谁?', '“诗仙”指的是谁？'), ('"诗仙"指的是谁?', '“诗仙”指的是谁？'),
    ('『红楼梦』是谁写的？', '‘红楼梦’是谁写的？'), ('你好,你是谁?', '你好，你是谁？'), ('１＋１等于几？', '1+1等于几？'),
    ('他在乾清宫打坏了杯子', '他在乾清宫打坏了杯子'), ('乾隆是谁？', '乾隆是谁？'), ('乾淨的水', '干净的水'),
    ('浙江省的省会', '浙江省的省会'), ('？', '？'), ('。。。', '。。。'), ('print("你好,世界")', 'print("你好,世界")'),
    ('x = "「」"', 'x = "「」"'), ('print("繁體")', 'print("繁體")'),
    ('「龍」的简体字怎么写？', '“龍”的简体字怎么写？'),
    ('車牌「滬」代表哪裡？', '车牌“沪”代表哪里？'), ('龍\ud83d', '龙'), ('好\ud83d', '好'),
    ('3~5克是多少？', '3~5克是多少？'), ('《静夜思》的作者', '《静夜思》的作者')]

@pytest.mark.parametrize('asked, want', READ)
def test_a_question_is_read_as_it_was_taught(asked, want):
    assert chat_form([asked]) == [want]
    assert chat_form([want]) == [want], 'again gives the same'

def test_reading_depends_on_no_neighbour():
    asked = [a for a, _ in READ]
    for order in (asked, asked[::-1]): assert chat_form(order) == [dict(READ)[a] for a in order]
    assert chat_form([]) == []

def test_taught_questions_are_read_as_they_stand():
    "What cleaning has left is in the form of chat already: training and chat meet in one form."
    asked = [r.prompt for r in fact_rows()[::7] + sft_rows()[::5] + unknown_rows()[::5]]
    cleaned = clean_texts(asked)
    assert chat_form(cleaned) == cleaned

def test_a_simplified_text_is_no_business_of_the_converter():
    "Every character of GB 2312: the set of simplified Chinese."
    gb = [bytes([a, b]).decode('gb2312', 'ignore') for a, b in product(range(0xB0, 0xF8), range(0xA1, 0xFF))]
    text = ''.join(gb)
    assert len(text) == 6763 and simplify(text) == text

@pytest.mark.parametrize('form', ['half_width', 'space_before', 'space_after', 'wide_space', 'byte_order_mark',
                                  'corner_quotes', 'traditional'])
def test_what_only_looks_different_is_read_as_one(form):
    "Nearly all: a title such as 乾 that OpenCC cannot bring back may differ."
    same = [a == b for a, b in zip(chat_form(typed(HELD, form)), chat_form(HELD))]
    assert sum(same) >= .995*len(HELD)


# ---- a space that tears a token

WORDS = ['首都', '省会', '浙江', '浙江省', '北京', '北京大学', '大学', '东西', '南北', '水果', '十五', '什么', '地方', '城市']
TORN = word_tok(CHARS + '是在的哪里？，“”：张三李四东西南北《》题望春法国首汽汁一二十五第', WORDS)
GAPS = [
    ('省 会是什么？', '省会是什么？'), ('浙江的省 会', '浙江的省会'), ('浙 江省的省 会', '浙江省的省会'), # a token is torn
    ('首 都？', '首都？'), ('“首 都”', '“首都”'), ('首 都', '首都'), ('春首 都的', '春首都的'), ('在首 都望', '在首都望'),
    ('张三 李四', '张三 李四'), ('是 在哪里', '是 在哪里'), ('的 省会', '的 省会'), ('春 望', '春 望'), # no token spans it
    ('北京 大学', '北京 大学'), ('北 京大学', '北京大学'), ('北京大 学', '北京大学'), # two words, and not
    ('南北 京', '南北 京'), # a word would be cut: 南 / 北京
    ('汽水 果汁', '汽水 果汁'), ('“水 果”', '“水果”'), ('三水 果望', '三水 果望'), ('的水 果望', '的水果望'), # made by chance
    ('十 五', '十 五'), ('第十 五', '第十 五'), ('二十 五', '二十 五'), # numerals
    ('东 西 哪里？', '东 西 哪里？'), ('东 西 南 北', '东 西 南 北'), ('：东 西 南 北。', '：东 西 南 北。'), # a list
    ('东 西 A面', '东 西 A面'), ('东 西 《望》', '东 西 《望》'), ('春 夏 东 西的', '春 夏 东 西的'),
    ('浙 江 省 的 省 会 在 哪 里 ？', '浙江省 的 省会 在 哪 里 ？'), # every character apart: a way of writing
    ('浙江 省 的 省 会 在 哪 里 吗 是 的', '浙江 省 的 省 会 在 哪 里 吗 是 的'), # not every one
    ('省  会', '省  会'), ('省\n会', '省\n会'), ('省\u3000会', '省\u3000会'), ('a b', 'a b'), ('省 a会', '省 a会'), # no gap
    ('省 会里有空格吗', '省 会里有空格吗'), (' 省会 ', ' 省会 '), ('', ''), (' ', ' ')]

@pytest.mark.parametrize('asked, want', GAPS)
def test_a_space_goes_if_it_tears_a_token(asked, want):
    assert close_gaps(asked, TORN) == want == close_gaps(want, TORN)

NUMERALS, LINKS = '〇零一二三四五六七八九十百千万亿两', '的地得是在有和了吗呢与把被用对从到为给跟让哪谁几多请问你我您他她它这那也都不就还会能要说个之'

def by_definition(text, tok):
    "The rule as chapter 08 words it, gap by gap, from the strings of the tokens."
    def pieces(t): return [piece if piece != '[UNK]' else '?' for piece in tok.tokenize(t)]
    def borders(t): return [sum(map(len, pieces(t)[:n])) for n in range(len(pieces(t)) + 1)]
    def han(c): return len(c) == 1 and '\u3400' <= c <= '\u9fff'
    def rest(piece): return han(piece) and piece not in LINKS
    gaps = [i for i in range(1, len(text) - 1) if text[i] == ' ' and han(text[i - 1]) and han(text[i + 1])]
    glued = ''.join(c for i, c in enumerate(text) if i not in gaps)
    new, old = borders(glued), borders(text)
    apart = len(gaps) >= 8 and not re.search('[\u3400-\u9fff]{2}', text)
    kept = []
    for n, gap in enumerate(gaps):
        left, right = max(b for b in old if b < gap), min(b for b in old if b > gap + 1)
        parted = any(left - n < b < right - n - 1 for b in new) # by a border of the new tokens
        words = left < gap - 1 and right > gap + 2
        numbers = text[gap - 1] in NUMERALS and text[gap + 1] in NUMERALS
        alone = text[gap - 2:gap - 1] == ' ' or text[gap + 2:gap + 3] == ' '
        chance = False
        if not parted and right - left == 3: # two single tokens become one, between the rests of two words
            i = next(k for k, b in enumerate(new) if b > gap - n) - 1 # of the new token
            known = {k: glued[new[k]:new[k + 1]] for k in range(len(new) - 1)}
            chance = all(rest(known.get(k, '')) for k in (i - 1, i + 1))
        if parted or words or numbers or chance or (alone and not apart): kept.append(gap)
    return ''.join(c for i, c in enumerate(text) if i not in gaps or i in kept)

def test_gaps_by_brute_force():
    rng = random.Random(0)
    pieces = [*WORDS, *'首都省会东西南北张三的是水果十五望', '靨', ' ', '  ', '？', 'a ', '“']
    texts = [''.join(rng.choices(pieces, k=rng.randint(1, 8))) for _ in range(4000)]
    texts = [''.join(char + ' '*(rng.random() < i%4/3) for char in text) for i, text in enumerate(texts)]
    closed = [close_gaps(t, TORN) for t in texts]
    assert closed == [by_definition(t, TORN) for t in texts]
    assert [letters(t) for t in closed] == [letters(t) for t in texts], 'nothing but spaces goes'
    assert [close_gaps(t, TORN) for t in closed] == closed, 'again gives the same'
    assert 400 < sum(a != b for a, b in zip(texts, closed)) < 3000

def test_only_the_chat_closes_gaps_and_never_in_code():
    torn, code = '浙江的省 会是哪里?', 'print("首 都")'
    assert chat_form([torn, code]) == read_typed([torn, code]) == ['浙江的省 会是哪里？', code]
    assert read_typed([torn, code], TORN) == ['浙江的省会是哪里？', code]
    bot = ChatBot(toy_model(len(TORN), seed=1), TORN)
    assert bot.encode([torn]) == bot.encode(['浙江的省会是哪里？']) != ChatBot(bot.model, TORN, read=chat_form).encode([torn])
    assert bot.encode([code]) == ChatBot(bot.model, TORN, read=list).encode([code])

def test_bytes_and_long_texts_close_gaps_too():
    tok = byte_tok()
    assert close_gaps('省 会', tok) == '省 会', 'no token of this tokenizer holds two characters'
    merged = train_bpe(['蔬菜水果']*9 + ['吃 水果']*9 + ['蔬菜']*20 + ['水果']*20 + ['东西']*9, 600, 'byte')
    assert merged.tokenize('吃 水果')[-1] == merged.tokenize(' 水果')[0], 'a token that begins with the space'
    assert close_gaps('蔬菜 水果', merged) == '蔬菜 水果' and close_gaps('蔬 菜', merged) == '蔬菜'
    long = '省 会' * 50_000
    assert close_gaps(long, TORN) == '省会' * 50_000


# ---- ways of typing

def test_every_form_by_hand():
    q, rng = '“诗仙”，你知道浙江省吗？', random.Random(0)
    def by(form): return type_as(q, form, rng)
    assert by('half_width') == '“诗仙”,你知道浙江省吗?' and by('no_mark') == '“诗仙”，你知道浙江省吗'
    assert type_as('哪里?  ', 'no_mark', rng) == '哪里  '
    assert by('space_before') == ' ' + q and by('space_after') == q + '  '
    assert by('wide_space') == f'\u3000{q}\u3000' and by('byte_order_mark') == '\ufeff' + q
    assert by('corner_quotes') == '「诗仙」，你知道浙江省吗？' and by('traditional') == '“詩仙”，你知道浙江省嗎？'
    assert by('short_name') == '“诗仙”，你知道浙江吗？' and by('you') == '“诗仙”，您知道浙江省吗？'
    assert by('bare') == '诗仙，你知道浙江省吗？' and q in by('polite')

@pytest.mark.parametrize('question', HELD[::97])
def test_a_slip_doubles_one_character_and_a_space_parts_two(question):
    rng = random.Random(question)
    for _ in range(20):
        slipped, spaced = type_as(question, 'slip', rng), type_as(question, 'inner_space', rng)
        places = [i for i in range(len(slipped) - 1) if slipped[i] == slipped[i + 1]]
        assert question in {slipped[:i] + slipped[i + 1:] for i in places}
        assert spaced.replace(' ', '') == question.replace(' ', '') and len(spaced) == len(question) + 1
        i = spaced.index(' ')
        assert '\u4e00' <= spaced[i - 1] <= '\u9fff' and '\u4e00' <= spaced[i + 1] <= '\u9fff'

def test_slips_prefer_the_name():
    rng = random.Random(0)
    slips = [type_as('浙江省的省会是什么地方？', 'slip', rng, '浙江省') for _ in range(1000)]
    inside = sum('的省会是什么地方？' in s for s in slips)
    assert .8 < inside/1000 < .92 # four in five, and those that hit it by chance

def test_short_names_are_those_that_people_use():
    assert SHORT_NAMES['内蒙古自治区'] == '内蒙古' and SHORT_NAMES['广西壮族自治区'] == '广西'
    assert SHORT_NAMES['黑龙江省'] == '黑龙江' and SHORT_NAMES['中秋节'] == '中秋' and '春节' not in SHORT_NAMES
    subjects = {f.subject for f in facts()}
    for full, short in SHORT_NAMES.items(): assert full in subjects and full.startswith(short) and short not in subjects

def test_text_without_chinese_survives_every_form():
    rng = random.Random(0)
    for q, form in product(['hello', '?', '1+1'], FORMS): assert isinstance(type_as(q, form, rng), str)

def test_the_sample_asks_so():
    "Every taught form shows in the corpus, and no row has the letters of a held-out question."
    prompts = [r.prompt for r in fact_rows()]
    assert sum(p[-1] not in '？。' for p in prompts) > 2000
    assert sum(any(a == b for a, b in zip(p, p[1:])) for p in prompts) > 4000
    assert sum('浙江的' in p or '浙江把' in p for p in prompts) >= 5 and sum('请问' in p for p in prompts) > 1000
    assert not {letters(p) for p in prompts} & {letters(q) for q in HELD}
    assert len({letters(p) for p in prompts}) == len(prompts)


# ---- questions that nobody taught

def test_topics_and_forms_of_the_test_are_its_own():
    assert not {*TOPICS} & {*TEST_TOPICS}
    words = [{w for t in topics.values() for w in t.words if '{' not in w} for topics in (TOPICS, TEST_TOPICS)]
    asks = [{a for t in topics.values() for a in t.asks} for topics in (TOPICS, TEST_TOPICS)]
    assert not words[0] & words[1] and not asks[0] & asks[1]
    train, test = unknown_questions(4000), unknown_questions(800, test=True)
    assert not {letters(q.text) for q in train} & {letters(q.text) for q in test}
    assert len({q.text for q in train}) == 4000

def test_a_name_made_up_by_chance_is_no_stranger():
    "Seeds in which the dealt characters spell a real subject."
    taught = {letters(q) for f in facts() for q in [*phrasings(f).train, *(h.question for h in phrasings(f).held)]}
    for seed in range(2, 8): assert not taught & {letters(q.text) for q in unknown_questions(3400, seed)}
    assert len(strangers(500)) == 500 and not taught & set(map(letters, strangers(500)))

def test_nothing_to_refuse_is_taught_elsewhere():
    taught = {letters(q) for q in HELD} | {letters(r.prompt) for r in fact_rows()}
    for test in (False, True): assert not taught & {letters(q.text) for q in unknown_questions(1500, test=test)}

def test_every_slot_is_filled_and_every_kind_comes():
    for test in (False, True):
        asked = unknown_questions(1500, 3, test)
        assert not any('{' in q.text or '}' in q.text for q in asked)
        assert {q.kind for q in asked} >= {'topic', 'sum', 'nonsense', 'no_passage'}
        assert all(q.refusal in REFUSALS.values() and is_refusal(f' {q.refusal}\n') for q in asked)
    assert not any(is_refusal(f.response) for f in facts())

def test_refusals_train_beside_the_facts_in_the_same_wraps():
    pretrain, sft = unknown_rows(), [r for r in sft_rows() if is_refusal(r.response)]
    assert len(sft) == 600 and not {letters(r.title) for r in sft} & {letters(r.title) for r in pretrain}
    heads = [r.title[:4] for r in sft_rows() if r.relation == 'province']
    assert {r.title[:4] for r in sft if r.body} <= {*heads, '用一句话', '你是小西', '根据你的'}


# ---- loops

def looped(text, copies=3, least=4):
    "By brute force: does the text end in a piece that comes `copies` times, or a short one until it fills as much?"
    for size in range(1, len(text)//copies + 1):
        times = max(copies, math.ceil(copies*least/size))
        if text.endswith(text[-size:]*times): return True
    return False

@pytest.mark.parametrize('alphabet', ['ab', 'abc'])
def test_closers_by_brute_force(alphabet):
    "Random texts with many loops: a token closes one if and only if the longer text ends in one."
    rng = random.Random(alphabet)
    chars = [1.]*len(alphabet)
    hits = 0
    for _ in range(4000):
        piece = [rng.randrange(len(alphabet)) for _ in range(rng.randint(1, 6))]
        ids = (piece*20)[:rng.randint(0, 24)] + [rng.randrange(len(alphabet)) for _ in range(rng.randint(0, 2))]
        text = ''.join(alphabet[i] for i in ids)
        want = {i for i, c in enumerate(alphabet) if looped(text + c)}
        assert loop_closers(ids, chars) == want, text
        hits += bool(want)
    assert hits > 500

def test_long_tokens_count_by_their_characters():
    chars = [1., 4., 2.]
    assert loop_closers([1, 1], chars) == {1} and not loop_closers([1], chars)
    assert loop_closers([2]*5, chars) == {2} and not loop_closers([2]*4, chars)
    assert not loop_closers([], chars)

def test_what_should_repeat_may():
    "Zeros, table lines and indentation count a quarter; the bytes of a character count once, and none is torn."
    tok = char_tok('1024|- 好')
    chars = token_chars(tok)
    assert not loop_closers(tok('1' + '0'*40, add_special_tokens=False).input_ids, chars)
    assert [chars[tok.convert_tokens_to_ids(c)] for c in '0| 好'] == [.25, .25, .25, 1]
    assert loop_closers([tok.convert_tokens_to_ids('0')]*47, chars)
    ids = [tok.convert_tokens_to_ids(c) for c in '|---'*3]
    assert not loop_closers(ids[:-1], chars) and not loop_closers(ids, chars)

def test_bytes_count_as_their_characters():
    "A byte-level vocabulary: three bytes are one character, and a loop closes where a character begins."
    tok = byte_tok()
    chars = token_chars(tok)
    def ids(text): return tok(text, add_special_tokens=False).input_ids
    assert sum(chars[i] for i in ids('好🙂a')) == 3 and sum(chars[i] for i in ids('1 |')) == .75
    for n in range(1, len(ids('好'*11))): assert not loop_closers(ids('好'*11)[:n], chars)
    assert loop_closers(ids('好'*12), chars) == {ids('好')[0]}, 'the next one would begin here; none is torn'

def test_a_tokenizer_without_an_end_mark_has_no_guard():
    tok = char_tok(CHARS)
    tok.eos_token = None
    assert not processors(GUARDED, tok) and not processors(GUARDED)

def test_token_lengths():
    tok = char_tok(CHARS)
    assert token_chars(tok)[tok.convert_tokens_to_ids('天')] == 1 and len(token_chars(tok)) == len(tok)
    tok.add_tokens(['天地玄黄'])
    assert token_chars(tok)[tok.convert_tokens_to_ids('天地玄黄')] == 4, 'counted again after a change'

@pytest.fixture(scope='module')
def circling():
    "A random model without end marks of its own: nearly all its answers run in circles."
    tok = char_tok(CHARS)
    return ChatBot(toy_model(len(tok), endless=True), tok, PLAIN)

ASKED = ['你好', '你是谁？', '秋收冬藏', '天地玄黄，宇宙洪荒', '好', '寒来暑往']

WAYS = [dict(), dict(strategy='beam', num_beams=3), dict(strategy='sampling', temperature=.05, seed=1)]

@pytest.mark.parametrize('how', WAYS)
def test_no_answer_runs_in_circles(circling, how):
    free, guarded = circling.answer(ASKED, replace(PLAIN, **how)), circling.answer(ASKED, replace(GUARDED, **how))
    assert any(map(in_circles, free)) and not any(map(in_circles, guarded))
    for a, b in zip(free, guarded):
        if how.get('strategy') != 'beam': assert a.startswith(b), 'up to the circle it is the same answer'
    assert guarded == [circling.answer([q], replace(GUARDED, **how))[0] for q in ASKED]
    assert guarded == [''.join(circling.stream(q, replace(GUARDED, **how))) for q in ASKED]

def test_an_answer_without_circles_is_left_alone():
    tok = char_tok(CHARS)
    hot = replace(GUARDED, strategy='sampling', temperature=3., seed=5)
    bot = ChatBot(toy_model(len(tok), seed=1), tok, hot)
    free = bot.answer(ASKED, replace(hot, loop_copies=0))
    straight = [i for i, text in enumerate(free) if not any(looped(text[:n]) for n in range(len(text) + 1))]
    assert len(straight) > 2 and [bot.answer(ASKED)[i] for i in straight] == [free[i] for i in straight]

def test_the_guard_hands_the_score_to_the_end_mark():
    tok = char_tok(CHARS)
    guard = LoopGuard(tok, 3)
    said = torch.tensor([[8]*12, [8, 9]*6])
    scores = torch.arange(2.*len(tok)).view(2, -1)
    got = guard(said, scores)
    assert got[0, 8] == -math.inf and got[0, 1] == scores[0, 8] and torch.equal(got[0, 9:], scores[0, 9:])
    assert got[1, 8] == -math.inf and got[1, 1] == scores[1, 8] # 8 would be the next of the circle
    assert guard(said[:, :3], scores) is scores


# ---- characters that the model cannot see

def test_unknown_characters_are_named_once():
    tok = char_tok(CHARS)
    bot = ChatBot(toy_model(len(tok), seed=1), tok, GUARDED)
    told = set()
    assert bot.unknown_chars('你好龘，龘靐 是谁') == '龘靐' and bot.unknown_chars('你好') == ''
    assert bot.unknown_note('龘是谁？', told) == '（我不认识这些字：龘。）'
    assert bot.unknown_note('龘靐是谁？', told) == '（我不认识这些字：靐。）' and bot.unknown_note('靐龘', told) == ''
    assert bot.unknown_chars('你\ufe0f好\u200d，靨') == '靨', 'as it was typed; what nobody sees is not named'
    assert ChatBot(toy_model(len(byte_tok())), byte_tok()).unknown_chars('龘靐') == '', 'bytes know every character'
    for blank in ('\u200b', '\ufeff ', '\u3000', '\u3164', '\u2800\u115f '):
        with pytest.raises(ValueError, match='not blank'): bot.answer([blank])

def test_the_terminal_names_them_beside_the_answer():
    tok = char_tok(CHARS)
    bot, told = ChatBot(toy_model(len(tok), seed=1), tok, GUARDED), set()
    shown = []
    for text in ('龘是谁？', '龘是谁？'):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err): assert say(bot, text, told)
        shown.append((out.getvalue().strip(), err.getvalue().strip()))
    answer, = bot.answer(['龘是谁？'])
    assert shown == [(answer.strip(), '（我不认识这些字：龘。）'), (answer.strip(), '')]

def test_the_widget_names_them_in_a_bubble():
    tok = char_tok(CHARS)
    view = chat_widget(ChatBot(toy_model(len(tok), seed=1), tok, GUARDED))
    for text in ('龘是谁？', '龘'):
        view.submit(text)
        assert view.wait()
    assert [m['role'] for m in view.messages] == ['user', 'note', 'bot', 'user', 'bot']
    assert '龘' in view.bubbles.children[1].value and threading.active_count() < 50

def test_a_bot_may_read_in_its_own_way():
    tok = char_tok(CHARS)
    model = toy_model(len(tok), seed=1)
    assert ChatBot(model, tok).encode(['你好?', '你好？'])[0] == ChatBot(model, tok).encode(['你好？'])[0]
    raw = ChatBot(model, tok, read=list).encode(['你好?', '你好？'])
    assert raw[0] != raw[1]


# ---- the examination

def test_circles():
    assert in_circles('加油'*6) and not in_circles('加油'*5) and in_circles('x\n天地玄黄天地玄黄天地玄黄')
    assert not in_circles('') and not in_circles('天地玄黄，天地玄黄')

class Parrot:
    "Says a question back, in the form in which it is read; counts what it was asked."
    decoding = GUARDED
    def __init__(self): self.asked = []
    def read(self, questions): return chat_form(questions)
    def answer(self, questions, decoding=None):
        self.asked += questions
        return list(questions)

def test_no_question_is_answered_twice():
    bot = Parrot()
    examinee = Examinee(bot)
    assert examinee.answers(['你是谁?', '你是谁？', ' 你是谁？']) == ['你是谁？']*3 and bot.asked == ['你是谁？']
    assert examinee.answers(['你是谁？', '好']) == ['你是谁？', '好'] and bot.asked == ['你是谁？', '好']

def test_forms_are_scored_by_hand():
    "A parrot is right where the form is read away, and wrong where letters change."
    questions = ['浙江省的省会是哪里？', '“诗仙”指的是谁？', '氢是什么？']
    scores = form_scores(Examinee(Parrot()), questions, questions)
    assert [scores[f]['value'] for f in ('plain', 'half_width', 'traditional', 'corner_quotes')] == [1.]*4
    assert scores['no_mark']['value'] == 0 and scores['slip']['value'] == 0 and scores['short_name']['value'] == 2/3
    assert all(s['n'] == 3 and s['ci95'][0] <= s['value'] <= s['ci95'][1] for s in scores.values())

class Shy(Parrot):
    "Refuses what has no question mark."
    fallback = '这句我看不懂。'
    def answer(self, questions, decoding=None): return [q if '？' in q else REFUSALS['outside'] for q in questions]

def test_refusals_are_counted_on_both_sides():
    got = refusal_scores(Examinee(Shy()), ['你好', '你是谁？'])
    unknown = chat_form([q.text for q in unknown_questions(300, test=True)])
    assert got['refused_known']['value'] == .5 and got['loops']['n'] == 500 and got['refused_stranger']['n'] == 100
    assert got['refused_unknown']['value'] == sum('？' not in q for q in unknown)/300

def test_the_fallback_counts_as_a_refusal():
    "Whoever reads 这句我看不懂 is told as plainly as by a refusal that no answer follows."
    bot = Shy()
    assert refuses(bot, bot.fallback) and refuses(bot, REFUSALS['outside'])
    assert not refuses(bot, '杭州。') and not refuses(bot, '')

def test_a_trade_off_by_brute_force():
    rng = random.Random(0)
    unknown, known = ([rng.randint(0, 9) for _ in range(30)] for _ in range(2))
    curve = trade_off(unknown, known)
    for level in range(11):
        point = sum(k < level for k in known)/30, sum(u < level for u in unknown)/30
        assert point in curve
    assert curve[-1] == (1., 1.) and curve == sorted(curve)
    assert refused_at(curve, 1.) == 1. and refused_at([(.5, 1.)], .01) == 0.

def test_forced_answers_are_the_most_likely_that_do_not_refuse():
    "Step by step without a cache, one question at a time."
    tok = char_tok(CHARS + '抱歉')
    model = toy_model(len(tok), seed=4)
    starts = refusal_starts(tok)
    assert starts == [tok.convert_tokens_to_ids('抱')]
    for question, got in zip(ASKED, forced_answers(model, tok, ASKED, max_new_tok=12)):
        ids = torch.tensor([tok(question, add_special_tokens=False).input_ids + [1]])
        said, logps = [0], []
        while len(said) <= 12 and said[-1] != 1:
            with torch.no_grad(): logits = model(input_ids=ids, decoder_input_ids=torch.tensor([said])).logits[0, -1]
            if len(said) == 1:
                assert got.refusing == pytest.approx(logits.softmax(-1)[starts].sum().item(), rel=1e-4)
                logits[starts] = -math.inf
            logp, best = logits.log_softmax(-1).max(-1)
            said.append(best.item())
            logps.append(logp.item())
        assert got.logp == pytest.approx(sum(logps)/len(logps), rel=1e-3, abs=1e-5), decode(tok, said)
