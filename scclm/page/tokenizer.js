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
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = rankOf(parts[i], parts[i + 1]);
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts;
  }

  const encode = (text) => [...split(text).map((part) => (part ? ids.get(part) : table.unknown)), table.end];
  const decode = (list) => list.filter((id) => !special.has(id)).map((id) => table.tokens[id]).join("");
  return { encode, decode };
}
