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
  // part of one. It stays between two words; and, if there are less than eight, beside a character that has a space on
  // either side, as in a list.
  const isHan = (char) => char >= "\u3400" && char <= "\u9fff";

  function closeGaps(text) {
    const chars = [...text];
    const isGap = (i) => chars[i] === " " && isHan(chars[i - 1]) && isHan(chars[i + 1]);
    const gaps = [...chars.keys()].filter(isGap);
    if (!gaps.length || text.includes("空格")) return text;
    const inside = new Set(); // places within a token, once all gaps are gone
    for (const [a, b] of spans(chars.filter((_, i) => !isGap(i)).join(""))) {
      for (let i = a + 1; i < b; i++) inside.add(i);
    }
    const ends = new Map(spans(text)), starts = new Map(spans(text).map(([start, end]) => [end, start]));
    const isTorn = (gap, k) => {
      const left = starts.get(gap) ?? gap - 1, right = ends.get(gap + 1) ?? gap + 2; // of the tokens on both sides
      for (let i = left + 1 - k; i < right - 1 - k; i++) if (!inside.has(i)) return false;
      const isBetweenWords = gap - left > 1 && right - gap > 2;
      const isListed = gaps.length < 8 && (isGap(gap - 2) || isGap(gap + 2));
      return !isBetweenWords && !isListed;
    };
    const torn = new Set(gaps.filter(isTorn));
    return chars.filter((_, i) => !torn.has(i)).join("");
  }

  const encode = (text) => [...split(text).map((part) => (part ? ids.get(part) : table.unknown)), table.end];
  const decode = (list) => list.filter((id) => !special.has(id)).map((id) => table.tokens[id]).join("");
  const longest = table.tokens.reduce((most, token) => Math.max(most, [...token].length), 1); // characters of a token
  return { encode, decode, closeGaps, longest };
}
