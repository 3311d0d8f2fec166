"""One process of a training run, for `torchrun`: what test_ranks.py starts.

    torchrun --standalone --nproc_per_node 2 tests/rank_worker.py HOME OUT '{"steps": 12}'

The options are TrainCfg fields, and: dropout, budget_tok, kill (step, rank: SIGKILL to itself), term (step, rank:
SIGTERM to itself). Every process notes the prompts it trained on, step by step, in OUT/seen-RANK.jsonl: an
independent record of who saw what."""
import json
import os
import signal
import sys
from pathlib import Path

import torch

from scclm.dataset import PairStream
from scclm.model import build_model, model_config
from scclm.tokenizer import load_tokenizer
from scclm.trainer import TrainCfg, fit, processes, seq2seq_loss


def main(home:str, out:str, options:str):
    torch.set_num_threads(1)
    home = Path(home)
    out = Path(out)
    options = json.loads(options)
    dropout = options.pop('dropout', None) or 0.
    budget_tok = options.pop('budget_tok', None) or 256
    orders = [(options.pop('kill', None), signal.SIGKILL), (options.pop('term', None), signal.SIGTERM)]
    cfg = TrainCfg(**(dict(lr=1e-3, precision='fp32', log_every=1, seed=1) | options))

    state = processes()
    rank = state.process_index
    tok = load_tokenizer(home/'tokenizer')
    stream = PairStream([home/'data/train.parquet'], tok, budget_tok=budget_tok, max_len=64, window=200, seed=1,
                        rank=rank, world=state.num_processes, index_dir=home/'lengths')
    sizes = dict(d_model=32, num_heads=2, d_ff=64, dropout_rate=dropout)
    model = build_model(model_config('tiny', len(tok), **sizes), seed=1)
    now = []

    def loss(model, batch):
        real = batch['labels'].ne(-100).any(1)
        if real.any(): now.extend(tok.batch_decode(batch['input_ids'][real], skip_special_tokens=True))
        return seq2seq_loss(model, batch)

    def note(run):
        with open(out/f'seen-{rank}.jsonl', 'a', encoding='utf-8') as f:
            f.write(json.dumps([run.step, list(now)], ensure_ascii=False) + '\n')
        now.clear()
        for order, sig in orders:
            if order == [run.step, rank]: os.kill(os.getpid(), sig)

    run = fit(model, stream, cfg, out, loss, callbacks=[note], progress=False)
    print(f'rank {rank} of {state.num_processes}: step {run.step}, stopped by {run.stopped}', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
