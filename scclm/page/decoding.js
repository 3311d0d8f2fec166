"use strict";
// Chapter 08 for one answer: the guard against loops, temperature, top-p, and the choice.

// The tokens that would complete a loop: a piece of text that comes `copies` times in a row.
function loopClosers(said, chars, copies = 3, least = 4) {
  const found = new Set();
  for (let period = 1; period <= Math.floor((said.length + 1) / copies); period++) {
    const piece = said.slice(said.length - period);
    const pieceChars = Math.max(0.25, piece.reduce((sum, id) => sum + chars[id], 0));
    const times = Math.max(copies, Math.ceil((copies * least) / pieceChars));
    const there = period * times - 1; // tokens of the loop that stand there already
    if (said.length < there || chars[piece[0]] <= 0) continue;
    const tail = said.slice(said.length - there);
    if (tail.every((id, i) => i < period || id === tail[i - period])) found.add(piece[0]);
  }
  return found;
}

// The end mark takes the score of a token that would close a loop.
function guardLoops(logits, said, chars, end, copies = 3) {
  if (copies < 1) return logits;
  const closers = loopClosers(said, chars, copies);
  closers.delete(end);
  for (const id of closers) {
    logits[end] = Math.max(logits[end], logits[id]);
    logits[id] = -Infinity;
  }
  return logits;
}

// Probabilities of all tokens. A temperature of 0 is the greedy choice; the numbers shown are then those of 1.
function probabilities(logits, temperature) {
  const probs = new Float64Array(logits.length);
  let top = -Infinity, sum = 0;
  for (let i = 0; i < probs.length; i++) top = Math.max(top, probs[i] = logits[i] / (temperature || 1));
  for (let i = 0; i < probs.length; i++) sum += probs[i] = Math.exp(probs[i] - top);
  for (let i = 0; i < probs.length; i++) probs[i] /= sum;
  return probs;
}

// The n most likely tokens, in order: one pass over thousands of numbers, where sorting them all takes a dozen.
function best(probs, n) {
  const order = [];
  for (let id = 0; id < probs.length; id++) {
    if (order.length === n && !(probs[id] > probs[order[n - 1]])) continue;
    let at = order.length;
    while (at > 0 && probs[id] > probs[order[at - 1]]) at--;
    order.splice(at, 0, id);
    order.length = Math.min(order.length, n);
  }
  return order;
}

// All tokens, the most likely first.
function inOrder(probs) {
  return Array.from(probs.keys()).sort((a, b) => probs[b] - probs[a] || a - b);
}

// The smallest set of tokens, the most likely first, whose probabilities reach `topP`.
function likeliest(probs, topP, order = inOrder(probs)) {
  const enough = topP < 1 ? topP : Infinity; // 1 is off: the sum may reach 1 before the last small ones
  let reached = 0, kept = 0;
  while (kept < order.length && reached < enough) reached += probs[order[kept++]];
  return { order, kept, reached };
}

// The next token: the most likely one, or a draw among those that top-p leaves; `random()` is in [0, 1).
function choose(logits, { temperature, topP }, random) {
  const probs = probabilities(logits, temperature);
  const { order, kept, reached } = likeliest(probs, topP, temperature > 0 ? inOrder(probs) : best(probs, 5));
  let id = order[0];
  if (temperature > 0) {
    let left = random() * reached;
    id = order.slice(0, kept).find((candidate) => (left -= probs[candidate]) < 0) ?? order[kept - 1];
  }
  const top = order.slice(0, 5).map((candidate, n) => ({ id: candidate, p: probs[candidate], kept: n < kept }));
  return { id, p: probs[id], top };
}

// The same numbers for the same seed: a small generator (mulberry32).
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x = (x + Math.imul(x ^ (x >>> 7), x | 61)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}
