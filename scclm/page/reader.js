"use strict";
// A question as people type it, in the form that the model was trained on: `chat_form` of the appendix "text_rules",
// function by function, under the same names. Patterns, character maps and lists come from Python, in `table`.
function makeReader(table) {
  const all = (name) => new RegExp(table.patterns[name], "gu");
  const at = (name) => new RegExp(table.patterns[name], "uy");
  const P = Object.fromEntries(Object.keys(table.patterns).map((name) => [name, all(name)]));
  const has = (name, text) => text.search(P[name]) >= 0;
  const matchesAt = (name, text, place) => {
    const pattern = at(name);
    pattern.lastIndex = place;
    return pattern.exec(text);
  };
  const SEP = "\x01";
  const forms = new Map(table.forms), plain = new Map(table.plain), quotes = new Map(table.quotes);
  const translate = (text, map) => Array.from(text, (c) => map.get(c) ?? c).join("");
  const charAt = (text, place) => (place < text.length ? String.fromCodePoint(text.codePointAt(place)) : "");
  const isAlnum = (text) => has("alnum", text), isDigit = (text) => has("digit", text);
  const isAlpha = (text) => has("alpha", text), isAscii = (text) => /^[\x00-\x7f]*$/.test(text);
  const rstrip = (text) => text.replace(P.space_end, "");
  const lstrip = (text) => text.replace(P.space_start, "");
  const count = (text, sign) => text.split(sign).length - 1;

  // What nobody sees

  function stripInvisible(text) {
    return text.replaceAll("\r\n", "\n").replace(P.unseen, (c, place, whole) => {
      if ("\r\x0b\x0c\x85\u2028\u2029".includes(c)) return "\n";
      if (c >= "\x1c" && c <= "\x1f") return " ";
      return c === "\u200d" && matchesAt("emoji", whole, place + 1) ? c : "";
    });
  }

  // HTML

  function realTags(row) {
    const opened = new Map(), pairs = [];
    for (const m of row.matchAll(P.tag)) {
      const name = m[2].toLowerCase();
      if (table.void.includes(name) || m[4]) pairs.push([m, null]);
      else if (!m[1]) opened.set(name, [...(opened.get(name) ?? []), m]);
      else if (opened.get(name)?.length) pairs.push([opened.get(name).pop(), m]);
    }
    for (const waiting of opened.values()) for (const m of waiting) if (m[3]) pairs.push([m, null]);
    return pairs;
  }

  function script(row, first, last) {
    const sign = first[2].toLowerCase() === "sup" ? "^" : "_";
    if (!last) return [sign, ""];
    const end = last.index + last[0].length;
    const inside = row.slice(first.index + first[0].length, last.index), after = charAt(row, end);
    if (!rstrip(inside)) return [" ", ""];
    if (inside.startsWith("[")) return ["", ""];
    const joined = isAscii(after) && isAlnum(after);
    const formula = sign === "_" && [...inside].length === 1 && isDigit(inside) && isAlpha(after);
    if (has("plain_script", inside) && (formula || !joined)) return [sign, ""];
    return [sign + "{", "}"];
  }

  function stripTags(row) {
    if (has("about_tags", row) || has("only_markup", row)) return row;
    row = row.replace(P.comment, "");
    const instead = new Map();
    for (const [first, last] of realTags(row)) {
      const name = first[2].toLowerCase();
      let both = ["", ""];
      if (name === "br") both = ["\n", ""];
      else if (table.blocks.includes(name)) both = ["\x03", "\x03"];
      else if (table.cells.includes(name)) both = [" ", " "];
      else if (name === "sup" || name === "sub") both = script(row, first, last);
      instead.set(first.index, both[0]);
      if (last) instead.set(last.index, both[1]);
    }
    row = row.replace(P.tag, (...m) => instead.get(m.at(-2)) ?? m[0]);
    return row.replace(P.breaks, (m) => (has("blank", m) ? "\n\n" : "\n"));
  }

  function entity(whole) {
    const name = whole.slice(1);
    let char = table.entities[name];
    if (name[0] === "#") {
      const hex = /^#[xX]([0-9a-fA-F]+);$/.exec(name), decimal = /^#([0-9]+);$/.exec(name);
      if (!hex && !decimal) return whole;
      const code = hex ? parseInt(hex[1], 16) : parseInt(decimal[1], 10);
      const half = code >= 0xd800 && code <= 0xdfff;
      char = half ? "" : table.odd_codes[code] ?? String.fromCodePoint(code);
    }
    if (char === undefined) return whole;
    return stripInvisible(char).replaceAll(SEP, "").replaceAll("\ufffd", "");
  }

  function stripHtml(text) {
    if (has("may_be_tag", text)) text = stripTags(text);
    return text.includes("&") ? text.replace(P.entity, entity) : text;
  }

  // Forms of characters, spaces

  function halfWidth(text) {
    if (text.includes("\u3000")) text = text.replace(P.wide_indent, "\n");
    return text.replace(P.form, (m) => translate(m, forms));
  }

  function atRowStarts(name, rule, text) {
    if (!"，。、；：！？ \t\n".includes(text[0] ?? "x")) return text.replace(P[name], rule);
    return (SEP + text).replace(P[name], rule).slice(1);
  }

  function oneSpace(m, place, text) {
    return place === 0 || text[place - 1] === "\n" || text[place - 1] === SEP ? m : " ";
  }

  function firstIndent(m, place, text) {
    const indent = m.slice(m.lastIndexOf("\n") + 1).replaceAll(SEP, "");
    const row = text.slice(place + m.length);
    const alone = indent === "" || indent === " " || !(row.includes("\n  ") || row.includes("\n\t"));
    return alone ? SEP : SEP + indent;
  }

  function tidySpaces(text) {
    text = text.replace(P.gap_space, oneSpace).replace(P.gap_tab, oneSpace);
    text = text.replace(/ +$/, "").replaceAll(" \n", "\n").replace(P.blank, "\n\n");
    return atRowStarts("row_start", firstIndent, text.replace(P.one_space, "\n"));
  }

  // Punctuation

  const hugMarks = (text) => text.replace(P.hug, "");

  function chineseQuotes(text) {
    text = hugMarks(text).replace(P.quote, "“$1”");
    text = text.replace(P.after_quote, (m) => "”" + table.chinese[m[1]]);
    table.before_quote.forEach((mark, n) => { text = text.replace(P["before_quote_" + n], mark); });
    return text;
  }

  function chinesePunct(text) {
    if (text.includes("(")) {
      const widePair = (m, inside) => (count(inside, "（") === count(inside, "）") ? `（${inside}）` : m);
      let old = "";
      text = text.replace(P.paren, widePair);
      while (text !== old && has("nested", text)) [text, old] = [text.replace(P.paren, widePair), text];
      text = text.replace(P.paren_latin, "（$1）");
    }
    table.marks.forEach((mark, n) => { text = text.replace(P["mark_" + n], mark); });
    return (text.includes('"') ? chineseQuotes(text) : text).replace(P.stop, "。");
  }

  function insideWord(m, place, text) {
    const around = ((text[place - 1] ?? "") + (text[place + m.length] ?? "")).replaceAll("\x04", "a");
    return around.length === 2 && /^[0-9A-Za-z]+$/.test(translate(around, forms));
  }

  function oneMark(m, place, text) {
    const signs = new Set(m);
    if (signs.size > 2 || insideWord(m, place, text)) return m;
    if ("：；".includes(m[0]) && text[place - 1] === "（") return m; // a face
    return [...signs].filter((c) => "。！？".includes(c)).join("") || m[0];
  }

  function noLead(m, indent, place, text) {
    const meant = matchesAt("face_or_command", text, place + m.length - 1);
    return SEP + indent + (meant ? meant[0][0] : "");
  }

  function collapseMarks(text) {
    text = text.replace(P.run, oneMark).replace(P.ellipsis, "……");
    return atRowStarts("lead", noLead, text);
  }

  function collapseRuns(text) {
    const shortRun = (m, sign, place) => (insideWord(m, place, text) ? m : sign.repeat(sign === "—" ? 2 : 3));
    return collapseMarks(text.replace(P.long_run, shortRun));
  }

  // Brackets: places count characters here, not halves of them

  function unpaired(chars) {
    const opened = Object.fromEntries(Object.values(table.pairs).map((bracket) => [bracket, []]));
    const odd = [];
    chars.forEach((c, place) => {
      if (c in opened) opened[c].push(place);
      else if (c in table.pairs && opened[table.pairs[c]].length) opened[table.pairs[c]].pop();
      else if (c in table.pairs) odd.push(place);
    });
    return odd.concat(...Object.values(opened));
  }

  function loneQuotes(chars, odd) {
    const lineOf = new Map(), quotesIn = new Map();
    let line = 0, done = 0;
    for (const place of odd.filter((k) => "“”".includes(chars[k])).sort((a, b) => a - b)) {
      for (; done < place; done++) if (chars[done] === "\n") line++;
      lineOf.set(place, line);
      quotesIn.set(line, (quotesIn.get(line) ?? 0) + 1);
    }
    const lone = [...lineOf.keys()].filter((place) => quotesIn.get(lineOf.get(place)) === 1);
    return new Set(lone.filter((place) => !has("reversed", chars.slice(Math.max(0, place - 21), place + 1).join(""))));
  }

  function isDebris(before, bracket, after) {
    if (before === "\\" || after === "\\") return false;
    if ((isDigit(before) || before === "\x04") && "“”".includes(bracket)) return false;
    const ends = table.ends_of[bracket];
    const lineOrSentence = before === "\n" || ends.includes(before);
    if (bracket in table.pairs) return lineOrSentence;
    if (after === "\n") return bracket !== "（" || !"：；:;".includes(before);
    return ends.includes(after) || (lineOrSentence && has("han_char", after));
  }

  function withoutDebris(chars, odd) {
    const kept = [];
    const seenBefore = () => {
      let k = kept.length - 2;
      while (k >= 0 && (chars[kept[k]] === " " || chars[kept[k]] === "\t")) k--;
      return k >= 0 ? chars[kept[k]] : "\n";
    };
    [...chars, "\n"].forEach((c, place) => {
      while (kept.length && odd.has(kept.at(-1)) && isDebris(seenBefore(), chars[kept.at(-1)], c)) kept.pop();
      kept.push(place);
    });
    return kept.slice(0, -1).map((place) => chars[place]).join("");
  }

  function balance(text) {
    const chars = [...text];
    const unmatched = unpaired(chars), lone = loneQuotes(chars, unmatched);
    const odd = new Set(unmatched.filter((place) => !"“”".includes(chars[place]) || lone.has(place)));
    const kept = odd.size ? withoutDebris(chars, odd).replaceAll(" \n", "\n") : text;
    return kept.replace(P.blank, "\n\n");
  }

  function fixBrackets(text) {
    let left = text.replace(P.not_bracket, "");
    for (const pair of ["（）", "《》", "“”", "【】", "（）", "“”"]) left = left.replaceAll(pair, "");
    if (!left) return text;
    let old = text;
    text = balance(text);
    while (text !== old) {
      old = text;
      text = balance(collapseMarks(hugMarks(chinesePunct(text))));
    }
    return text;
  }

  // Code, addresses, sentences about marks

  function hold(text, name, sign) {
    const held = text.match(P[name]) ?? [];
    return [held.length ? text.replace(P[name], sign) : text, held];
  }

  function putBack(text, sign, held) {
    const pieces = text.split(sign);
    if (pieces.length !== held.length + 1) throw new Error("a rule dropped a held piece");
    return pieces.map((piece, n) => piece + (held[n] ?? "")).join("");
  }

  function codeAndMarks(text) {
    if (!has("may_be_code", text) && !has("about_marks", text)) return [false, false];
    const rest = text.includes("`") ? text.replace(P.inline_code, "") : text;
    const code = table.code.some((name) => has(name, rest));
    return [code, !code && has("about_marks", rest)];
  }

  function cleanProse(text) {
    let code, addresses;
    [text, code] = hold(text, "inline_code", "\x02");
    [text, addresses] = hold(halfWidth(stripHtml(text)), "address", "\x04");
    for (const rule of [tidySpaces, chinesePunct, hugMarks, fixBrackets, collapseRuns]) text = rule(text);
    return putBack(putBack(text, "\x04", addresses), "\x02", code);
  }

  function keepMarks(text) {
    const [rest, code] = hold(text, "inline_code", "\x02");
    return putBack(tidySpaces(translate(stripHtml(rest), plain)), "\x02", code);
  }

  function strip(text) {
    if (!text.includes("\n ") && !text.includes("\n\t")) return lstrip(rstrip(text));
    text = rstrip(text).replace(P.empty_lines, "");
    const indented = /^(  |\t)/.test(text) && (text.includes("\n  ") || text.includes("\n\t"));
    return indented ? text : lstrip(text);
  }

  function cleanText(text) {
    text = stripInvisible(text.replaceAll(SEP, ""));
    const [code, marks] = codeAndMarks(text);
    if (!code) text = marks ? keepMarks(text) : cleanProse(text);
    return strip(text);
  }

  // Simplified characters

  const phrases = new Map(table.phrases), simple = new Map(table.simple);
  const longest = Math.max(...table.phrases.map(([phrase]) => [...phrase].length));

  function t2s(text) {
    const chars = [...text], out = [];
    for (let i = 0; i < chars.length; ) {
      let size = Math.min(longest, chars.length - i);
      while (size > 1 && !phrases.has(chars.slice(i, i + size).join(""))) size--;
      const piece = chars.slice(i, i + size).join("");
      out.push(size > 1 ? phrases.get(piece) : simple.get(piece) ?? piece);
      i += size;
    }
    return out.join("");
  }

  const chinese = (text) => text.split(P.qian).map((part, k) => (k % 2 ? part : t2s(part))).join("");

  function simplify(text) {
    if (!has("traditional", text)) return text;
    if (!has("kana", text)) return chinese(text);
    return text.replace(P.japanese, (m) => (has("kana", m) ? m : chinese(m)));
  }

  function asAsked(text) {
    text = stripInvisible(text.replaceAll(SEP, ""));
    const other = translate(has("about_script", text) ? text : simplify(text), quotes);
    return other === text || codeAndMarks(text)[0] ? text : other;
  }

  const read = (text) => cleanText(asAsked(text)) || text;

  function shown(text) {
    text = asAsked(text);
    return codeAndMarks(text)[0] ? text : stripHtml(text);
  }

  const isBlank = (text) => !has("seen", text) || (/[<&]/.test(text) && !has("seen", shown(text))); // `check_typed`
  const isCode = (text) => codeAndMarks(text)[0];
  return { read, isBlank, isCode, cleanText, simplify };
}
