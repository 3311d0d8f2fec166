"use strict";
// The whole T5 of chapter 03, function by function, for one token at a time: one vector goes in, one comes out.
// W: name in PyTorch -> {rows, cols, data}. spec: heads, layers, decoderLayers, eps, logitScale, reach.
function makeModel(W, spec) {
  const table = W.get("shared.weight"), head = W.get("lm_head.weight") ?? table;
  const embed = (id) => table.data.slice(id * table.cols, (id + 1) * table.cols);
  const add = (x, y) => x.map((v, i) => v + y[i]);

  function times({ rows, cols, data }, x) { // every row of the matrix times x
    const out = new Float32Array(rows);
    for (let row = 0, at = 0; row < rows; row++) {
      let sum = 0;
      for (let col = 0; col < cols; col++) sum += data[at++] * x[col];
      out[row] = sum;
    }
    return out;
  }
  const linear = (name) => (x) => times(W.get(`${name}.weight`), x);

  function norm(name, x) { // over the root of the mean square
    const size = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length + spec.eps);
    const scale = W.get(`${name}.weight`).data;
    return x.map((v, i) => (v / size) * scale[i]);
  }

  function softmax(scores) {
    const top = scores.reduce((a, b) => Math.max(a, b));
    const powers = scores.map((s) => Math.exp(s - top)), sum = powers.reduce((a, b) => a + b);
    return powers.map((p) => p / sum);
  }

  function attention(name, x, { keys, values }, bias) { // bias(head, j): added to the score of key j
    const query = linear(`${name}.q`)(x), width = query.length / spec.heads;
    const read = new Float32Array(query.length), weights = [];
    for (let h = 0, from = 0; h < spec.heads; h++, from += width) {
      const score = (key, j) => { // no division by the root of the width
        let sum = bias(h, j);
        for (let i = from; i < from + width; i++) sum += query[i] * key[i];
        return sum;
      };
      weights.push(softmax(keys.map(score)));
      values.forEach((value, j) => { for (let i = from; i < from + width; i++) read[i] += weights[h][j] * value[i]; });
    }
    return { out: linear(`${name}.o`)(read), weights };
  }
  const memory = (name, xs) => ({ keys: xs.map(linear(`${name}.k`)), values: xs.map(linear(`${name}.v`)) });
  const dense = (name, x) => linear(`${name}.wo`)(linear(`${name}.wi`)(x).map((v) => Math.max(v, 0)));

  function position(side, offset, h) { // a row for every "key minus query"; beyond the reach they are all the same
    const { data, cols } = W.get(`${side}.positions`);
    const row = Math.min(Math.max(offset, -spec.reach), spec.reach) + spec.reach;
    return data[row * cols + h];
  }

  async function encode(ids, rest) { // before every token it waits for `rest`, which may end the work by an error
    let xs = ids.map(embed);
    for (let b = 0; b < spec.layers; b++) {
      const part = `encoder.block.${b}.layer`, self = `${part}.0.SelfAttention`, read = [];
      const hs = xs.map((x) => norm(`${part}.0.layer_norm`, x)), all = memory(self, hs);
      for (let i = 0; i < xs.length; i++) {
        await rest();
        const x = add(xs[i], attention(self, hs[i], all, (h, j) => position("encoder", j - i, h)).out);
        read.push(add(x, dense(`${part}.1.DenseReluDense`, norm(`${part}.1.layer_norm`, x))));
      }
      xs = read;
    }
    return xs.map((x) => norm("encoder.final_layer_norm", x));
  }

  // The cache: of every block, keys and values of the question and of what was said.
  async function start(ids, rest = () => {}) {
    const question = await encode(ids, rest);
    return Array.from({ length: spec.decoderLayers }, (_, b) => {
      const part = `decoder.block.${b}.layer`;
      return { part, said: { keys: [], values: [] }, asked: memory(`${part}.1.EncDecAttention`, question) };
    });
  }

  function step(cache, id) { // read one token: the scores of the next, and where every head looked in the question
    let y = embed(id);
    const looks = [];
    for (const { part, said, asked } of cache) {
      const self = `${part}.0.SelfAttention`, h = norm(`${part}.0.layer_norm`, y), now = said.keys.length;
      said.keys.push(linear(`${self}.k`)(h));
      said.values.push(linear(`${self}.v`)(h));
      y = add(y, attention(self, h, said, (head, j) => position("decoder", j - now, head)).out);
      const { out, weights } = attention(`${part}.1.EncDecAttention`, norm(`${part}.1.layer_norm`, y), asked, () => 0);
      looks.push(...weights);
      y = add(y, out);
      y = add(y, dense(`${part}.2.DenseReluDense`, norm(`${part}.2.layer_norm`, y)));
    }
    const last = norm("decoder.final_layer_norm", y).map((v) => v * spec.logitScale);
    return { logits: times(head, last), looks };
  }

  return { start, step };
}
