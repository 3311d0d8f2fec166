"use strict";
// What runs in the Web Worker: opens the model, reads a question, writes an answer token by token.
// In:  {open: {manifest, tables, weights}}, {ask: {n, text, temperature, topP, seed}}, {stop: n}
// Out: {ready}, {asked}, {token}, {done}, {failed}: each with the number n of the question where there is one.
function work() {
  let model, reader, tokenizer, tables, limits;
  let stopped = 0; // questions up to this number are no longer to be answered

  const say = (kind, what) => self.postMessage({ [kind]: what });
  let rested = 0; // when messages were last let in, milliseconds

  async function letMessagesIn() { // not after every token: a timer costs as much as one
    if (performance.now() - rested < 12) return;
    await new Promise((go) => setTimeout(go));
    rested = performance.now();
  }

  function open({ manifest, tables: given, weights }) {
    tables = given;
    limits = manifest.limits;
    const bytes = bytesOf(weights);
    if (bytes.length !== manifest.weights.bytes) {
      throw new Error(`weights.js: ${bytes.length} bytes, expected ${manifest.weights.bytes}`);
    }
    model = makeModel(readTensors(bytes.buffer, manifest.weights), manifest.model);
    tokenizer = makeTokenizer(tables.tokenizer);
    reader = makeReader(tables.reading);
    say("ready", {});
  }

  // Characters of a question, as typed, that the tokenizer does not know.
  function unknownIn(text) {
    const seen = [...new Set(text)].filter((char) => !reader.isBlank(char));
    return seen.filter((char) => tokenizer.encode(reader.read(char)).includes(tables.tokenizer.unknown));
  }

  // What is wrong with a question, or its ids. More characters than so many of the longest tokens hold cannot fit:
  // such a text is not split at all, which would take long.
  function check(text) {
    if (/[\ud800-\udfff]/u.test(text)) return { why: "问题里有半个字符，请重新输入。" };
    if (reader.isBlank(text)) return { why: "问题是空的，请写一句话。" };
    const read = reader.read(text), length = [...read].length, most = limits.promptTokens;
    if (length > most * tokenizer.longest) return { why: `问题太长：${length} 个字，最多 ${most} 个词元。` };
    const ids = tokenizer.encode(reader.isCode(read) ? read : tokenizer.closeGaps(read));
    return ids.length > most ? { why: `问题太长：${ids.length} 个词元，最多 ${most} 个。` } : { ids };
  }

  // Unknown tokens, and besides them no letter and no digit: the fallback is all that can be said.
  function seesNone(ids) {
    const known = ids.filter((id) => id !== tables.tokenizer.unknown);
    return known.length < ids.length && !/[\p{L}\p{N}]/u.test(tokenizer.decode(known));
  }

  // The mean over heads and layers of how much a token looks at every token of the question.
  function meanLook(looks) {
    const sums = new Array(looks[0].length).fill(0);
    for (const shares of looks) for (let j = 0; j < sums.length; j++) sums[j] += shares[j];
    return sums.map((sum) => sum / looks.length);
  }

  const STOPPED = new Error("stopped");
  const restOf = (n) => async () => { // of question n: between two tokens
    await letMessagesIn();
    if (n <= stopped) throw STOPPED;
  };

  async function ask({ n, text, temperature, topP, seed }) {
    const { ids, why } = check(text), rest = restOf(n), said = [];
    if (why) return say("failed", { n, why });
    try {
      await write({ n, text, ids, temperature, topP, seed }, rest, said);
    } catch (error) {
      if (error !== STOPPED) throw error;
      say("done", { n, text: tokenizer.decode(said), why: "stopped" });
    }
  }

  async function write({ n, text, ids, temperature, topP, seed }, rest, said) {
    const words = (list) => list.map((id) => tables.tokenizer.tokens[id]);
    say("asked", { n, tokens: words(ids), unknown: unknownIn(text) });
    if (seesNone(ids)) return say("done", { n, text: limits.fallback, why: "end" });
    const random = seed === undefined ? Math.random : seeded(seed);
    const cache = await model.start(ids, rest);
    let next = limits.startId, ended = false;
    while (!ended && said.length < limits.newTokens) {
      await rest();
      const { logits, looks } = model.step(cache, next);
      guardLoops(logits, said, tables.tokenizer.chars, tables.tokenizer.end, limits.loopCopies);
      const { id, p, top } = choose(logits, { temperature, topP }, random);
      said.push(next = id);
      ended = id === tables.tokenizer.end;
      const named = top.map((one) => ({ ...one, token: tables.tokenizer.tokens[one.id] }));
      const written = { id, token: tables.tokenizer.tokens[id], text: tokenizer.decode(said) };
      say("token", { n, ...written, p, top: named, look: meanLook(looks) });
    }
    const answer = tokenizer.decode(said);
    say("done", { n, text: answer.trim() ? answer : limits.fallback, why: ended ? "end" : "length" });
  }

  self.onmessage = async ({ data }) => {
    try {
      if (data.open) open(data.open);
      if (data.ask) await ask(data.ask);
      if (data.stop) stopped = Math.max(stopped, data.stop);
    } catch (error) {
      say("failed", { n: data.ask?.n, why: String(error.message ?? error) });
    }
  };
}
