"use strict";
// The whole T5 of chapter 03, one token at a time. `tensors` maps a name of the PyTorch model to
// {rows, cols, data}; `spec` holds a few numbers of its configuration. Nothing else is needed.
function makeModel(tensors, spec) {
  const table = tensors.get("shared.weight");
  const head = tensors.get("lm_head.weight") || table;
  const embed = (id) => table.data.slice(id * table.cols, (id + 1) * table.cols);
  const add = (x, y) => x.map((v, i) => v + y[i]);

  function multiply(matrix, x) { // every row of the matrix times x
    const out = new Float32Array(matrix.rows);
    for (let row = 0, at = 0; row < matrix.rows; row++) {
      let sum = 0;
      for (let col = 0; col < matrix.cols; col++, at++) sum += matrix.data[at] * x[col];
      out[row] = sum;
    }
    return out;
  }

  const linear = (name, x) => multiply(tensors.get(name + ".weight"), x);
  const each = (name, xs) => xs.map((x) => linear(name, x));

  function norm(name, x) { // divide by the root of the mean square; no mean is taken off
    const scale = tensors.get(name + ".weight").data;
    const meanSquare = x.reduce((sum, v) => sum + v * v, 0) / x.length;
    const size = Math.sqrt(meanSquare + spec.eps);
    return x.map((v, i) => (v / size) * scale[i]);
  }

  function softmax(scores) {
    const top = Math.max(...scores);
    const powers = scores.map((s) => Math.exp(s - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((p) => p / sum);
  }

  // One token looks at many: a softmax over the keys for every head, then the mean of the values.
  function attend(name, x, keys, values, bias) {
    const query = linear(name + ".q", x);
    const out = new Float32Array(query.length);
    const width = query.length / spec.heads;
    const shares = [];
    for (let h = 0; h < spec.heads; h++) {
      const [from, to] = [h * width, (h + 1) * width];
      const scores = keys.map((key, j) => {
        let sum = bias ? bias(h, j) : 0; // T5 does not divide by the root of the width
        for (let i = from; i < to; i++) sum += query[i] * key[i];
        return sum;
      });
      const share = softmax(scores);
      values.forEach((value, j) => { for (let i = from; i < to; i++) out[i] += share[j] * value[i]; });
      shares.push(share);
    }
    return { out: linear(name + ".o", out), shares };
  }

  // The bias of "key minus query = offset", from a table that Python has filled; far away it is one value.
  function positionBias(stack, offset, h) {
    const bias = tensors.get(stack + ".position_bias");
    const middle = spec.reach;
    const row = Math.min(Math.max(offset, -middle), middle) + middle;
    return bias.data[row * bias.cols + h];
  }

  const feedForward = (name, x) => linear(name + ".wo", linear(name + ".wi", x).map((v) => Math.max(v, 0)));

  function encode(ids) {
    let xs = ids.map(embed);
    for (let l = 0; l < spec.layers; l++) {
      const self = `encoder.block.${l}.layer.0`, ff = `encoder.block.${l}.layer.1`;
      const seen = xs.map((x) => norm(self + ".layer_norm", x));
      const keys = each(self + ".SelfAttention.k", seen), values = each(self + ".SelfAttention.v", seen);
      xs = xs.map((x, i) => {
        const bias = (h, j) => positionBias("encoder", j - i, h);
        return add(x, attend(self + ".SelfAttention", seen[i], keys, values, bias).out);
      });
      xs = xs.map((x) => add(x, feedForward(ff + ".DenseReluDense", norm(ff + ".layer_norm", x))));
    }
    return xs.map((x) => norm("encoder.final_layer_norm", x));
  }

  // What the decoder keeps between two tokens: keys and values, of the question and of what it has said.
  function start(ids) {
    const question = encode(ids);
    return Array.from({ length: spec.decoderLayers }, (_, l) => {
      const cross = `decoder.block.${l}.layer.1.EncDecAttention`;
      return { keys: [], values: [], askedKeys: each(cross + ".k", question), askedValues: each(cross + ".v", question) };
    });
  }

  // Read one token, give the scores of the next and where every head of every layer looked in the question.
  function step(cache, id) {
    let x = embed(id);
    const looks = [];
    cache.forEach((kept, l) => {
      const [self, cross, ff] = [0, 1, 2].map((n) => `decoder.block.${l}.layer.${n}`);
      const seen = norm(self + ".layer_norm", x);
      kept.keys.push(linear(self + ".SelfAttention.k", seen));
      kept.values.push(linear(self + ".SelfAttention.v", seen));
      const now = kept.keys.length - 1;
      const bias = (h, j) => positionBias("decoder", j - now, h);
      x = add(x, attend(self + ".SelfAttention", seen, kept.keys, kept.values, bias).out);
      const asked = attend(cross + ".EncDecAttention", norm(cross + ".layer_norm", x), kept.askedKeys, kept.askedValues);
      x = add(x, asked.out);
      looks.push(...asked.shares);
      x = add(x, feedForward(ff + ".DenseReluDense", norm(ff + ".layer_norm", x)));
    });
    const last = norm("decoder.final_layer_norm", x).map((v) => v * spec.logitScale);
    return { logits: multiply(head, last), looks };
  }

  return { start, step };
}
