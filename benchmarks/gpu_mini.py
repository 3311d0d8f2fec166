"""A scale trained on real pairs on one GPU for a few minutes, and triples learnt after it and from scratch.

    scclm clean; scclm tokenizer                               # beforehand, on any machine
    python benchmarks/gpu_mini.py pretrain [--minutes 2.5]     # the scale's preset, as many steps as fit
    python benchmarks/gpu_mini.py ie pretrained --duie FOLDER  # equal steps from either start; they may run together
    python benchmarks/gpu_mini.py ie scratch --duie FOLDER
    python benchmarks/gpu_mini.py table                        # results/gpu_<scale>.json

SCCLM_SCALE and SCCLM_RUNS name the run as everywhere. No weights and no texts of the data are kept with the results:
the curve, figures, hashes of the inputs, and answers to ten questions of our own. Triples are read in large batches;
learning rates and passes are as given here, chosen before any score was seen."""
import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from gpu import launch_us, matrix_peak
from report import machine, row, write
from transformers import PreTrainedTokenizerBase, T5Config

from scclm.dataset import decode, encode, kept_lengths, length_index
from scclm.ie_finetune import IeCfg, ie_cfg, ie_eval, prepare, resolve_cfg, scores_of_tests, start_model
from scclm.model import build_model, default_init, model_config, n_params
from scclm.planner import train_flops
from scclm.pretrain import PretrainCfg, pretrain_cfg
from scclm.runlog import read_log
from scclm.runs import fingerprint, read_json, require, run_path, scale_name, write_json
from scclm.scores import greedy_ids
from scclm.stage import (finish_stage, read_samples, run_costs, stage_eval, stage_figures, stage_stream,
    watch_callbacks)
from scclm.tokenizer import load_tokenizer
from scclm.trainer import Run, fit
from scclm.triple_files import Sentence, Triple, parse_triples

QUESTIONS = ('你好', '中国的首都是哪里？', '李白是哪个朝代的诗人？', '什么是机器学习？', '怎样才能睡得更好？',
             '感冒了应该吃什么药？', '高血压患者饮食上要注意什么？', '劳动合同到期不续签有补偿吗？', '写一首关于春天的诗。',
             '请把“今天天气很好”翻译成英语。')
STARTS = ('pretrained', 'scratch')

# ---- pretraining


def flops_per_tok(
    config:T5Config, # of the model
    files:list[Path], # of pairs
    tok:PreTrainedTokenizerBase, # tokenizer
    max_len:int, # tokens kept of a text
)->float: # forward and backward, over real tokens
    "What one token of these pairs costs on average."
    lens = kept_lengths(length_index(files, tok)[0], max_len)
    return float(train_flops(config, *lens.T.astype(float)).sum() / lens.sum())


def steps_in(
    minutes:float, # of training
    cfg:PretrainCfg, # of the run
    files:list[Path], # of pairs
    tok:PreTrainedTokenizerBase, # tokenizer
    pilot:int=30, # steps tried
)->int: # a multiple of 100, at least 20
    "How many steps fit, from the second half of a few."
    few = replace(cfg, steps=pilot, log_every=pilot//2, eval_every=0, save_every=10*pilot)
    with tempfile.TemporaryDirectory() as out:
        run = fit(new_model(cfg, tok), stage_stream(files, tok, few), few, Path(out), progress=False)
        half, whole = (e['seconds'] for e in read_log(run.out/'log.jsonl'))
    fitting = 60*minutes / ((whole - half)/(pilot/2))
    return max(20, 100*int(fitting/100))


def new_model(
    cfg:PretrainCfg, # gives scale and seed
    tok:PreTrainedTokenizerBase, # gives the vocabulary
)->torch.nn.Module: # T5, untrained
    "As `pretrain` begins."
    return build_model(model_config(cfg.scale, len(tok)), init=default_init(cfg.scale), seed=cfg.seed)


def pretrain(
    args:argparse.Namespace, # minutes, budget, matrix
):
    "As `scclm pretrain`, for some minutes; its folder also gets gpu.json, what only this machine can say."
    tok, files = load_tokenizer(), [require(run_path('data', 'train.parquet'), 'clean')]
    cfg = pretrain_cfg()
    cfg = replace(cfg, budget_tok=args.budget or cfg.budget_tok)
    steps = args.steps or steps_in(args.minutes, cfg, files, tok)
    cfg = replace(cfg, steps=steps, log_every=max(1, steps//60), eval_every=max(1, steps//5), save_every=steps)
    peak = matrix_peak(args.matrix, torch.bfloat16)
    model = new_model(cfg, tok)
    n, config = n_params(model), model.config
    run = fit(model, stage_stream(files, tok, cfg), cfg, run_path('pretrain'), progress=False, resume=False,
              eval_fn=stage_eval(tok, cfg.max_len, too_long=cfg.too_long),
              callbacks=watch_callbacks(tok, QUESTIONS, 3*cfg.steps)) # a few times
    figures = stage_figures(run, tok, cfg.max_len)
    figures.pop('answers') # to questions of the data
    finish_stage(run, tok, figures)
    kinds = dict(machine=machine(), transformers=transformers.__version__, precision=run.precision, params=n)
    inputs = {k: fingerprint(run_path(*k.split('/'))) for k in ('data/train.parquet', 'data/valid.parquet',
                                                                'data/test.parquet', 'tokenizer/tokenizer.json')}
    costs = dict(peak=peak, flops_per_tok=flops_per_tok(config, files, tok, cfg.max_len), phases=run.phases,
                 launch_us=launch_us())
    write_json(run.out/'gpu.json', kinds | costs | dict(vocab=len(tok), inputs=inputs))
    print(json.dumps(figures, ensure_ascii=False, default=str))

# ---- triples


def read_all(
    model:torch.nn.Module, # in eval mode
    tok:PreTrainedTokenizerBase, # its tokenizer
    tests:dict[str, list[Sentence]], # test -> sentences
    cfg:IeCfg, # gives max_len and max_new_tok
)->dict[str, tuple[list[list[Triple]], int]]: # test -> triples per sentence, unreadable pieces
    "As `extract_tests`, in batches that keep a GPU busy."
    found = {}
    for name, rows in tests.items():
        prompts = encode([s.pair.prompt for s in rows], tok, cfg.max_len)
        answers = greedy_ids(model, prompts, cfg.max_new_tok, budget_tok=2**20)
        read = [parse_triples(decode(tok, ids)) for ids in answers]
        found[name] = [triples for triples, _ in read], sum(bad for _, bad in read)
    return found


def ie(
    args:argparse.Namespace, # start, duie, epochs, steps
)->Run: # done
    "As `scclm ie`, on the triples alone: no answers learnt before are mixed in."
    start = str(run_path('pretrain', 'model')) if args.start == 'pretrained' else args.start
    cfg = replace(ie_cfg(), start=start, data=(str(args.duie),), mix=0., budget_tok=49_152, max_new_tok=160,
                  lr=1e-3, lr_scratch=1e-3, eval_every=0, n_watch=0, max_test=args.max_test,
                  max_rows=args.max_rows, epochs=args.epochs, save_every=10**6)
    out = run_path(f'ie_{args.start}')
    model, tok = start_model(cfg)
    train, tests = prepare(cfg, tok, out)
    stream = stage_stream([train], tok, cfg)
    run = fit(model, stream, resolve_cfg(cfg, stream), out, eval_fn=ie_eval(tok, tests, cfg), progress=False,
              resume=False)
    scores = scores_of_tests(tests, read_all(run.acc.unwrap_model(run.model), tok, tests, run.cfg))
    finish_stage(run, tok, scores | run_costs(run) | dict(data=fingerprint(Path(args.duie)), machine=machine()))
    print(json.dumps(scores))
    return run

# ---- the result


def thin(
    entries:list, # in order
    n:int=60, # at most
)->list: # spread evenly, the last among them
    "A curve short enough to keep."
    every = -(-len(entries)//n)
    return entries[::-1][::every][::-1]


def curve(
    log:list[dict], # of pretraining
)->list[dict]: # step, tokens, loss of training, loss and BLEU-4 on valid where they were measured
    "The points that a plot needs."
    tokens = {e['step']: e['real_tok'] for e in log if 'real_tok' in e}
    trained = thin([e for e in log if 'loss' in e])
    points = {e['step']: dict(loss=e['loss'], real_tok_per_s=e['real_tok_per_s']) for e in trained}
    for e in log:
        if 'loss_valid' in e: points.setdefault(e['step'], {}).update(loss_valid=e['loss_valid'], bleu4=e['bleu4'])
    return [dict(step=s, real_tok=tokens.get(s)) | points[s] for s in sorted(points)]


def speed_rows(
    what:str, # the scale
    done:dict, # figures of pretraining
    gpu:dict, # from gpu.json
)->list[dict]: # rows
    "Real tokens per second, and the share of the peak that they are."
    reached = done['real_tok_per_s'] * gpu['flops_per_tok'] / 1e12
    return [row(f'{what}: training', [reached], [gpu['peak'] / 1e12], 'matrix product', 'TFLOP/s')
            | dict(tok_per_s=done['real_tok_per_s'], real_tok=done['real_tok'], seconds=done['seconds'])]


def text_rows(
    what:str, # the scale
    done:dict, # figures of pretraining
    floors:dict, # of `baseline_bits`
)->list[dict]: # rows
    "Bits per character on held-out text."
    bits = [done['bits_per_char']]
    return [row(f'{what}: bits per character, test, {name}', bits, [floors[f'bits_per_char_{name}']], name, 'bits',
                higher_is_better=False) for name in ('unigram', 'bigram')]


def triple_rows(
    what:str, # the scale
    scores:dict[str, dict], # start -> figures of `ie`; empty: it did not run
)->list[dict]: # rows
    "F1 of every test, after pretraining against from scratch."
    if set(scores) != set(STARTS): return []
    found, base = (scores[k] for k in STARTS)
    tests = [k.removeprefix('f1_') for k in found if k.startswith('f1_') and not k.endswith(('_ci95', '_n'))]
    return [row(f'{what}: triples, {t}', [found[f'f1_{t}']], [base[f'f1_{t}']], 'from scratch, equal steps', 'F1')
            | dict(ci95=found[f'f1_{t}_ci95'], baseline_ci95=base[f'f1_{t}_ci95'], n=found[f'f1_{t}_n'],
                   published=found[f'published_f1_{t}'], baseline_published=base[f'published_f1_{t}']) for t in tests]


def table(
    args:argparse.Namespace, # floors
):
    "Put the figures of a finished run together. Floors are `baseline_bits` of the same data, as JSON."
    scale, folder = scale_name(), run_path('pretrain')
    done, gpu, floors = read_json(folder/'figures.json'), read_json(folder/'gpu.json'), read_json(args.floors)
    scores = {k: read_json(run_path(f'ie_{k}', 'figures.json')) for k in STARTS}
    scores = {k: v for k, v in scores.items() if v}
    rows = speed_rows(scale, done, gpu) + text_rows(scale, done, floors) + triple_rows(scale, scores)
    config = {k: read_json(run_path(k, 'config.json')) for k in ('pretrain', *(f'ie_{k}' for k in scores))}
    for cfg in config.values(): # where files lie on one machine says nothing
        for name in ('files', 'data', 'start', 'out'): cfg.pop(name, None)
    path = write(args.name or f'gpu_{scale}', config, rows)
    samples, log = read_samples(folder/'samples.jsonl'), read_log(folder/'log.jsonl')
    skipped = max(e.get('skipped', 0) for e in log) # steps whose gradient was not finite
    more = dict(figures=done | floors | dict(skipped=skipped), ie=scores,
                gpu={k: v for k, v in gpu.items() if k != 'machine'},
                curve=curve(log), answers={s: samples[s] for s in sorted(samples)[-1:]})
    result = json.loads(path.read_text(encoding='utf-8')) | dict(machine=gpu['machine']) | more
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def make_parser()->argparse.ArgumentParser: # of this script
    "Its commands."
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(required=True)
    first = commands.add_parser('pretrain')
    first.set_defaults(run=pretrain)
    first.add_argument('--minutes', type=float, default=2.5, help='of training; sets the steps')
    first.add_argument('--steps', type=int, default=0, help='instead of minutes')
    first.add_argument('--budget', type=int, default=0, help="padded tokens a batch; 0: the preset's")
    first.add_argument('--matrix', type=int, default=8192)
    second = commands.add_parser('ie')
    second.set_defaults(run=ie)
    second.add_argument('start', choices=STARTS)
    second.add_argument('--duie', type=Path, required=True, help='folder with DuIE files')
    second.add_argument('--epochs', type=float, default=10.)
    second.add_argument('--max-rows', type=int, default=0, help='training sentences; 0: all')
    second.add_argument('--max-test', type=int, default=0, help='test sentences; 0: all')
    third = commands.add_parser('table')
    third.set_defaults(run=table)
    third.add_argument('--name', default='', help='of the result; none: gpu_<scale>')
    third.add_argument('--floors', type=Path, required=True, help='JSON of `baseline_bits` on train and test')
    return p


def main():
    "Do what the command line says."
    args = make_parser().parse_args()
    args.run(args)


if __name__ == '__main__': main()
