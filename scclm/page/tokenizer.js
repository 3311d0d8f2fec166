"use strict";
// BPE of chapter 01 over a whole text: the pair of lowest rank is joined first, leftmost first.
// `table.tokens` are the tokens in the order of their ids; `table.merges` the pairs in the order of their ranks.
function makeTokenizer(table) {
  const ids = new Map(table.tokens.map((token, id) => [token, id]));
  const ranks = new Map(table.merges.map(([left, right], rank) => [left + "\n" + right, rank]));
  const special = new Set(table.special);
  const rankOf = (left, right) => ranks.get(left + "\n" + right) ?? Infinity;

  // A character without an id is no part of any pair: it stays alone and becomes the unknown token.
  const known = (char) => (ids.has(char) && !special.has(ids.get(char)) ? char : "");

  function split(text) {
    const parts = [...text].map(known);
    const rankAt = (i) => (i + 1 < parts.length ? rankOf(parts[i], parts[i + 1]) : Infinity);
    const waiting = parts.map((_, i) => rankAt(i)); // of every part and the next: a merge changes only its neighbours'
    for (;;) {
      let at = 0;
      for (let i = 1; i < waiting.length; i++) if (waiting[i] < waiting[at]) at = i;
      if (!(waiting[at] < Infinity)) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
      waiting.splice(at, 2, rankAt(at));
      if (at > 0) waiting[at - 1] = rankAt(at - 1);
    }
  }

  // Where the tokens of a text begin and end, in characters.
  function spans(text) {
    let end = 0;
    return split(text).map((part) => [end, (end += part ? [...part].length : 1)]);
  }

  // `close_gaps` of chapter 08: a space between Chinese characters goes if without it the tokens on both sides become
  // part of one, and nothing speaks for a space that was meant.
  const numerals = new Set(table.numerals), links = new Set(table.links);
  const isHan = (char) => char >= "\u3400" && char <= "\u9fff";

  function closeGaps(text) {
    const chars = [...text];
    const isGap = (i) => chars[i] === " " && isHan(chars[i - 1]) && isHan(chars[i + 1]);
    const gaps = [...chars.keys()].filter(isGap);
    if (!gaps.length || text.includes("空格")) return text;
    const closed = chars.filter((_, i) => !isGap(i)), whole = new Map(), single = new Set();
    for (const span of spans(closed.join(""))) {
      const [start, end] = span;
      for (let i = start + 1; i < end; i++) whole.set(i, span); // place inside -> token
      if (end - start === 1 && isHan(closed[start]) && !links.has(closed[start])) single.add(start);
    }
    const pieces = spans(text);
    const ends = new Map(pieces), starts = new Map(pieces.map(([start, end]) => [end, start]));
    const habit = gaps.length > 7 && !chars.some((char, i) => isHan(char) && isHan(chars[i + 1]));
    const isMeant = (gap, left, right) => (gap - left > 1 && right - gap > 2)
      || (numerals.has(chars[gap - 1]) && numerals.has(chars[gap + 1]))
      || (!habit && (chars[gap - 2] === " " || chars[gap + 2] === " "));
    const isTorn = (gap, k) => {
      const left = starts.get(gap) ?? gap - 1, right = ends.get(gap + 1) ?? gap + 2;
      for (let i = left + 1 - k; i < right - 1 - k; i++) if (!whole.has(i)) return false;
      const [start, end] = whole.get(gap - k);
      const byChance = right - left === 3 && single.has(start - 1) && single.has(end);
      return !byChance && !isMeant(gap, left, right);
    };
    const torn = new Set(gaps.filter(isTorn));
    return chars.filter((_, i) => !torn.has(i)).join("");
  }

  const encode = (text) => [...split(text).map((part) => (part ? ids.get(part) : table.unknown)), table.end];
  const decode = (list) => list.filter((id) => !special.has(id)).map((id) => table.tokens[id]).join("");
  const longest = table.tokens.reduce((most, token) => Math.max(most, [...token].length), 1); // characters of a token
  return { encode, decode, closeGaps, longest };
}
