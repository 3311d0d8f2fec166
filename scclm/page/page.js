"use strict";
// The page: loads the model's files, starts the worker, shows questions, answers, and how every token was chosen.

const given = {}; // what the data files hand over: manifest, tables, weights
function scclmPart(name, value, fingerprint) { given[name] = { value, fingerprint }; }

// Which export these files are of: browsers keep old files for days, one by one.
const VERSION = new URL(document.currentScript.src).searchParams.get("v");

const byId = (id) => document.getElementById(id);
const NO_WORKER = "这里开不了 Web Worker，聊天跑不起来；换一个新一点的浏览器再试，或把文件拷到硬盘上打开。";
const MADE_BY = "用 scclm page 重新做一次这个文件夹，或把文件补全。";

function make(tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

// One sentence instead of the chat.
function giveUp(sentence) {
  byId("app").hidden = true;
  byId("status").hidden = false;
  byId("status").textContent = sentence;
}

// A data file is a script, the only thing that a page opened from a disk may load.
function load(name, version = "") {
  return new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = `${name}.js${version}`;
    script.onload = () => (given[name] ? done(given[name]) : fail(new Error(`${name}.js 读到了，但内容不对。${MADE_BY}`)));
    script.onerror = () => fail(new Error(`读不到 ${name}.js。${MADE_BY}`));
    document.head.append(script);
  });
}

// The worker is made of the very functions that stand in these files.
const CODE = {
  "t5.js": ["makeModel"],
  "tokenizer.js": ["makeTokenizer"],
  "reader.js": ["makeReader"],
  "decoding.js": ["loopClosers", "guardLoops", "probabilities", "best", "inOrder", "likeliest", "choose", "seeded"],
  "unpack.js": ["bytesOf", "fromHalf", "floatsOf", "readTensors"],
  "worker.js": ["work"],
};

function startWorker() {
  const isThere = (name) => typeof globalThis[name] === "function";
  const missing = Object.keys(CODE).find((file) => !CODE[file].every(isThere));
  if (missing) throw new Error(`读不到 ${missing}。${MADE_BY}`);
  if (typeof Worker === "undefined") throw new Error(NO_WORKER);
  const functions = Object.values(CODE).flat().map((name) => String(globalThis[name]));
  const source = ['"use strict";', ...functions, "work();"];
  const url = URL.createObjectURL(new Blob([source.join("\n")], { type: "text/javascript" }));
  try {
    return new Worker(url);
  } catch {
    throw new Error(NO_WORKER);
  }
}

async function loadAll() {
  const manifest = (await load("manifest", `?t=${Date.now()}`)).value;
  const version = `?v=${manifest.fingerprint}`;
  const [tables, weights] = await Promise.all([load("tables", version), load("weights", version)]);
  const marks = { "index.html": VERSION, "tables.js": tables.fingerprint, "weights.js": weights.fingerprint };
  const other = Object.keys(marks).find((name) => marks[name] !== manifest.fingerprint);
  if (other) throw new Error(`${other} 和 manifest.js 不是同一次做的。刷新这一页；还不行就${MADE_BY}`);
  return { manifest, tables: tables.value, weights: weights.value };
}

// How a token is shown: what nobody sees gets a sign.
const shown = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
const percent = (p) => (p > 0 && p < 0.0005 ? "<0.1%" : `${(100 * p).toFixed(1)}%`);

class Chat {
  constructor(worker, manifest) {
    this.worker = worker;
    this.asked = 0; // number of the last question
    this.exchange = null; // what the answer that is being written is shown in
    const size = (manifest.bytes / 1e6).toFixed(1);
    byId("about").textContent =
      `模型在您的浏览器里算，问题不离开这台机器。${manifest.parameters.toLocaleString()} 个参数（${manifest.kind}），共 ${size} MB。`;
    worker.onmessage = ({ data }) => Object.entries(data).forEach(([kind, what]) => this.on(kind, what));
    byId("form").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    byId("question").addEventListener("keydown", (event) => this.enter(event));
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && this.exchange) this.stop(); });
    for (const id of ["temperature", "top-p"]) byId(id).addEventListener("input", () => this.showKnobs());
    this.showKnobs();
  }

  showKnobs() {
    const temperature = Number(byId("temperature").value);
    byId("temperature-value").textContent = temperature ? temperature.toFixed(2) : "0（贪心）";
    byId("top-p-value").textContent = Number(byId("top-p").value).toFixed(2);
    byId("temperature").setAttribute("aria-valuetext", byId("temperature-value").textContent);
  }

  busy(isBusy) {
    byId("send").disabled = isBusy;
    byId("stop").disabled = !isBusy;
    byId("log").setAttribute("aria-busy", String(isBusy));
  }

  enter(event) { // Enter sends, Shift+Enter is a new line; an Enter that picks a word of an input method does neither
    const choosing = event.isComposing || event.keyCode === 229;
    if (event.key !== "Enter" || event.shiftKey || choosing) return;
    event.preventDefault();
    this.ask();
  }

  ask() {
    const text = byId("question").value;
    if (this.exchange || !text.trim()) return;
    byId("question").value = "";
    this.exchange = new Exchange(text);
    byId("log").append(this.exchange.box);
    this.exchange.box.scrollIntoView({ block: "nearest" });
    this.busy(true);
    const [temperature, topP] = ["temperature", "top-p"].map((id) => Number(byId(id).value));
    this.worker.postMessage({ ask: { n: ++this.asked, text, temperature, topP } });
  }

  stop() { this.worker.postMessage({ stop: this.asked }); }

  clear() {
    this.stop();
    this.exchange = null;
    byId("log").replaceChildren();
    this.busy(false);
    byId("question").focus();
  }

  on(kind, what) {
    if (!this.exchange || what.n !== this.asked) return;
    this.exchange[kind](what);
    if (kind !== "done" && kind !== "failed") return;
    this.exchange = null;
    this.busy(false);
    byId("log").lastElementChild?.scrollIntoView({ block: "nearest" });
  }
}

// A question, its answer, and a button for every token of it.
class Exchange {
  constructor(text) {
    this.box = make("div", "exchange");
    this.answer = make("p", "bot", "…");
    this.words = make("p", "asked");
    this.look = make("p", "look");
    this.steps = make("ol", "steps");
    this.details = make("div", "details");
    this.details.setAttribute("aria-live", "off");
    this.box.append(make("p", "user", text), this.answer, this.details);
    this.steps.addEventListener("keydown", (event) => this.move(event));
  }

  asked({ tokens, unknown }) {
    if (unknown.length) this.answer.before(make("p", "note", `（我不认识这些字：${unknown.join("、")}。）`));
    this.words.append("模型读到：", ...tokens.map((token) => make("span", "", shown(token))));
    this.tokens = tokens;
    this.steps.setAttribute("aria-label", "写下的词元：左右键移动，看每一步的候选和它看问题的哪里");
    this.details.append(this.words, this.look, this.steps);
  }

  token({ token, p, top, look, text }) {
    this.answer.textContent = text;
    const step = make("button", "step");
    step.type = "button";
    step.tabIndex = this.steps.children.length ? -1 : 0;
    step.append(make("b", "", shown(token)), make("small", "", percent(p)), ...top.map((one) => this.option(one)));
    const others = top.map((one) => `${shown(one.token)} ${percent(one.p)}${one.kept ? "" : "，已截掉"}`).join("；");
    step.setAttribute("aria-label", `${shown(token)}，${percent(p)}。候选：${others}。${this.sentence(look)}`);
    step.addEventListener("pointerenter", () => this.lookAt(token, look));
    step.addEventListener("focus", () => this.lookAt(token, look));
    const item = make("li", "");
    item.append(step);
    this.steps.append(item);
  }

  option({ token, p, kept }) {
    const row = make("span", kept ? "option" : "option cut");
    row.style.setProperty("--p", p);
    row.append(make("span", "", shown(token)), make("span", "", percent(p)));
    return row;
  }

  sentence(look) {
    const order = [...look.keys()].sort((a, b) => look[b] - look[a]).slice(0, 3);
    return `看问题：${order.map((i) => `${shown(this.tokens[i])} ${look[i].toFixed(2)}`).join("、")}`;
  }

  lookAt(token, look) {
    [...this.words.children].forEach((word, i) => word.style.setProperty("--share", look[i]));
    this.look.textContent = `写“${shown(token)}”时，各层各头平均，${this.sentence(look)}`;
  }

  move(event) {
    const steps = [...this.steps.querySelectorAll("button")], now = steps.indexOf(document.activeElement);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 }[event.key];
    if (!steps[to]) return;
    event.preventDefault();
    steps.forEach((step, i) => { step.tabIndex = i === to ? 0 : -1; });
    steps[to].focus();
  }

  done({ text, why }) {
    this.answer.textContent = text + { end: "", stopped: "（已停止）", length: "（太长，先写到这里）" }[why];
  }

  failed({ why }) {
    this.answer.className = "wrong";
    this.answer.textContent = why;
  }
}

async function main() {
  byId("status").textContent = "正在打开模型……";
  try {
    const worker = startWorker();
    const ready = loadAll();
    worker.onerror = (event) => { // a host may forbid workers; the browser then says so without a message
      ready.catch(() => {});
      giveUp(event.message ? `聊天停了：${event.message}。刷新这一页再试。` : NO_WORKER);
    };
    const parts = await ready;
    worker.onmessage = ({ data }) => {
      if (data.failed) return giveUp(`模型打不开：${data.failed.why}。${MADE_BY}`);
      globalThis.chat = new Chat(worker, parts.manifest);
      byId("status").hidden = true;
      byId("app").hidden = false;
    };
    worker.postMessage({ open: parts });
  } catch (error) {
    giveUp(error.message);
  }
}

main();
