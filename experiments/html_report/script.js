"use strict";
// The page's own script: the theme, the numbers under the pointer in figures, and the tokens.
// Texts of runs are only ever set as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const number = (x) => {
  if (x === null || x === undefined) return "–";
  const text = x.toFixed(Math.abs(x) < 0.0005 ? 4 : 3); // a small one is not shown as 0
  return +text === 0 ? "0.000" : text.replace("-", "−");
};
const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
};

const root = document.documentElement, folds = [...document.querySelectorAll("details")];
byId("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
// What is open is kept in the tab's storage when the page is left, so that a reload shows it again.
const storage = "textenv " + location.pathname, state = { run: 0, step: null, metric: null, chosen: null };
addEventListener("pagehide", () => {
  const view = { ...state, theme: root.dataset.theme, open: folds.map((each) => each.open) };
  if (data.tokens.length) Object.assign(view, { run: current().name, last: state.step === current().steps.length - 1 });
  try { sessionStorage.setItem(storage, JSON.stringify(view)); } catch { /* a browser may refuse it to a file */ }
});
function restore() {
  let view = {};
  try { view = JSON.parse(sessionStorage.getItem(storage)) || {}; } catch { /* nothing was kept */ }
  if (view.theme) root.dataset.theme = view.theme;
  if (view.open?.length === folds.length) folds.forEach((each, i) => { each.open = view.open[i]; });
  const run = data.tokens.findIndex((each) => each.name === view.run);
  if (run >= 0) Object.assign(state, { run, step: view.last ? Infinity : view.step, metric: view.metric, chosen: view.chosen });
}

// -- figures: the nearest point's numbers -------------------------------------------------------------------------

const tip = byId("tip");
for (const figure of document.querySelectorAll("figure[data-figure]")) {
  const svg = figure.querySelector("svg"), points = data.figures[+figure.dataset.figure];
  const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  for (const [name, value] of [["r", 4.5], ["class", "at"], ["display", "none"]]) circle.setAttribute(name, value);
  svg.append(circle);
  const hide = () => { tip.hidden = true; circle.setAttribute("display", "none"); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / scale, y = (event.clientY - box.top) / scale;
    let best = null, least = 40 ** 2;
    for (const point of points) {
      const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (distance < least) [best, least] = [point, distance];
    }
    if (!best) return hide();
    for (const [name, value] of [["cx", best[0]], ["cy", best[1]], ["display", "inline"]]) circle.setAttribute(name, value);
    tip.textContent = best[2];
    tip.hidden = false;
    place(tip, box.left + best[0] * scale, box.top + best[1] * scale - 12, box.top + best[1] * scale + 14);
  });
  svg.addEventListener("pointerleave", hide);
}

// Puts a box above a point, or below it where there is no room; or the other way round.
function place(element, middle, above, below, preferBelow) {
  const width = element.offsetWidth, height = element.offsetHeight;
  element.style.left = Math.max(8, Math.min(middle - width / 2, document.documentElement.clientWidth - width - 8)) + "px";
  const fitsAbove = above - height >= 8, fitsBelow = below + height <= innerHeight - 8;
  const top = (preferBelow ? fitsBelow || !fitsAbove : !fitsAbove) ? Math.min(below, innerHeight - height - 8) : above - height;
  element.style.top = Math.max(8, top) + "px";
}

// -- tokens -------------------------------------------------------------------------------------------------------

// name: group, label, kind of colour, meaning. signed: earned above 0, lost below; cost: lost above 0; loss: never below.
const METRICS = {
  advantage: ["credit", "advantage", "signed", "how much better than V expected, by the learned V (GAE)"],
  exact_advantage: ["credit", "advantage, exact", "signed", "Q − V of this policy, enumerated"],
  cost: ["credit", "cost", "cost", "V* − Q* + β log π/π_ref, what the token costs: a completion's sum has the mean J* − J"],
  state_cost: ["credit", "cost of the state", "loss", "the part of J* − J that is lost in this state, over all its tokens"],
  reward: ["reward", "all", "signed", "r_t, the sum of all terms"],
  score: ["reward", "score", "signed", "given once, on the last token"],
  kl: ["reward", "KL", "signed", "−β times the log-ratio to the reference"],
  log_ratio: ["policy", "log-ratio", "signed", "above 0 the token is more likely than at the reference"],
  probability: ["policy", "probability", "amount", "π(a|s)"],
  entropy: ["policy", "entropy", "amount", "of π(·|s), in nats: how open the choice was"],
  value: ["value", "V", "signed", "what the agent's value head expects before the token"],
  exact_value: ["value", "V, exact", "signed", "what this policy gets from here, enumerated"],
  optimal_value: ["value", "V*", "signed", "what the optimum gets from here"],
  optimal_q: ["value", "Q*", "signed", "this token's score and shaping, and what the optimum gets after it"],
};
const about = (name) => METRICS[name] || ["reward", name.replace("shaping:", ""), "signed", "a shaping term"];
// the columns of the card that are exact, labels there, and what adds up over a completion
const EXACT = ["exact_advantage", "exact_value", "optimal_value", "optimal_q", "cost", "state_cost"];
const LABELS = { exact_advantage: "advantage", exact_value: "V", cost: "cost of J* − J", reward: "reward", score: "score term", kl: "KL term" };
const ADDED = ["reward", "score", "kl", "cost", "log_ratio"];

function start() {
  const select = byId("run");
  data.tokens.forEach((run, i) => select.append(Object.assign(make("option", run.name), { value: i })));
  select.hidden = data.tokens.length < 2;
  select.addEventListener("change", () => openRun(+select.value));
  byId("step").addEventListener("input", (event) => openStep(+event.target.value));
  byId("back").addEventListener("click", () => openStep(state.step - 1));
  byId("next").addEventListener("click", () => openStep(state.step + 1));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(null);
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest?.("select, input")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); openStep(state.step + by); }
  });
  const list = byId("completions");
  list.addEventListener("keydown", walk);
  list.addEventListener("pointerover", (event) => event.pointerType === "mouse" && show(event.target));
  list.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && show(event.target));
  list.addEventListener("pointerleave", showChosen);
  document.addEventListener("click", (event) => {
    if (event.target.classList.contains("token")) choose(event.target.dataset.at === state.chosen ? null : event.target.dataset.at);
    else if (!event.target.closest("#tokens, #card")) choose(null);
  });
  addEventListener("scroll", () => { if (innerWidth > 700) byId("card").hidden = true; }, { passive: true });
  openRun(state.run);
}

const current = () => data.tokens[state.run];
const names = (run) => {
  const found = new Set();
  for (const step of run.steps) for (const each of step.completions) Object.keys(each.columns).forEach((n) => found.add(n));
  const order = ["advantage", "exact_advantage", "value", ...Object.keys(METRICS)];
  const rank = (name) => (order.includes(name) ? order.indexOf(name) : order.indexOf("kl") + 0.5);
  return [...found].sort((a, b) => rank(a) - rank(b));
};

function openRun(index) {
  state.run = byId("run").value = index;
  const run = current(), known = names(run), box = byId("metrics");
  if (!known.includes(state.metric)) {
    state.metric = ["exact_advantage", "advantage", "log_ratio"].find((name) => known.includes(name)) || known[0];
  }
  box.replaceChildren();
  for (const group of ["credit", "reward", "policy", "value"]) {
    const row = make("div");
    row.append(make("em", group));
    for (const name of known.filter((each) => about(each)[0] === group)) {
      const button = Object.assign(make("button", about(name)[1]), { type: "button" });
      button.dataset.metric = name;
      button.addEventListener("click", () => { state.metric = name; paint(); });
      row.append(button);
    }
    if (row.children.length > 1) box.append(row);
  }
  byId("step").max = run.steps.length - 1;
  byId("kept").textContent = run.kept < run.of ?
    `${run.kept} of ${run.of} evaluations are in this page; all are in the run's folder, samples/.` : "";
  // before the training a V is not learned, and the policy is the reference: the exact credit alone tells something
  openStep(state.step ?? (state.metric === "exact_advantage" ? 0 : Infinity));
}

function openStep(index) {
  const run = current();
  state.step = Math.max(0, Math.min(index, run.steps.length - 1));
  const step = run.steps[state.step], last = run.steps.length - 1;
  byId("step").value = state.step;
  byId("back").ariaDisabled = state.step === 0; // a button that is disabled would lose the focus
  byId("next").ariaDisabled = state.step === last;
  const when = step.update === 0 ? "before training" : `${state.step === last && run.finished ? "after" : "at"} update ${step.update}`;
  const reached = step.objective === null ? "" : ` · J = ${number(step.objective)}`;
  byId("when").textContent = `${when} · ${step.timesteps.toLocaleString("en")} tokens${reached}`;
  const focused = document.activeElement.dataset.at;
  byId("completions").replaceChildren(...step.completions.map(completion));
  const stop = tokenAt(focused || state.chosen) || document.querySelector("#completions .token");
  if (stop) stop.tabIndex = 0;
  if (focused && stop) stop.focus({ preventScroll: true });
  paint();
  showChosen();
}

const tokenAt = (at) => at && document.querySelector(`#completions [data-at="${at}"]`);

// Up and down move the focus from token to token, of which one alone is a tab stop; Enter chooses.
function walk(event) {
  const tokens = [...document.querySelectorAll("#completions .token")], at = tokens.indexOf(event.target);
  if (at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
  const next = tokens[at + ({ ArrowUp: -1, ArrowDown: 1 }[event.key] || 0)];
  if (event.key === "Enter") choose(event.target.dataset.at);
  else if (next && next !== event.target) {
    event.preventDefault();
    [event.target.tabIndex, next.tabIndex] = [-1, 0];
    next.focus();
  }
}

function completion(each, row) {
  const box = make("div", undefined, "completion"), prompt = make("p", undefined, "prompt"), text = make("div", undefined, "text");
  prompt.append(make("bdi", each.prompt));
  each.tokens.forEach((token, at) => {
    const spaced = token.length > 1 && token.startsWith(" ");
    if (spaced) text.append(" ");
    const end = each.stopped && at === each.tokens.length - 1; // another token without a text is a part of a character
    const span = make("span", end ? "end" : (spaced ? token.slice(1) : token) || "·", end ? "token end" : "token");
    span.tabIndex = -1;
    span.dataset.at = `${row}:${at}`;
    text.append(span);
  });
  const score = make("div", each.score === null ? "skipped" : `score ${number(each.score)}`, "score");
  score.append(make("b"));
  box.append(prompt, text, score);
  return box;
}

function largest(run, name) {
  let most = 0;
  for (const step of run.steps) for (const each of step.completions) for (const x of each.columns[name] || []) {
    if (x !== null) most = Math.max(most, Math.abs(x));
  }
  return name === "probability" ? 1 : most || 1;
}

function paint() {
  const run = current(), [, , kind, meaning] = about(state.metric), most = largest(run, state.metric);
  const above = { signed: "--earned", amount: "--amount" }[kind] || "--lost", below = kind === "cost" ? "--earned" : "--lost";
  const from0 = kind === "amount" || kind === "loss";
  for (const button of byId("metrics").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.metric === state.metric);
  }
  for (const span of document.querySelectorAll("#completions .token")) {
    const x = numberOf(span.dataset.at, state.metric);
    span.style.setProperty("--tone", `var(${x < 0 ? below : above})`);
    span.style.setProperty("--share", x === null ? "0%" : `${(72 * Math.min(1, Math.abs(x) / most)).toFixed(1)}%`);
  }
  const adds = ADDED.includes(state.metric) || state.metric.startsWith("shaping:");
  document.querySelectorAll("#completions .score b").forEach((box, row) => {
    const column = run.steps[state.step].completions[row].columns[state.metric];
    const sum = column && (column.includes(null) ? null : column.reduce((a, b) => a + b, 0));
    box.textContent = adds && column && state.metric !== "score" ? ` · sum ${number(sum)}` : "";
  });
  const end = (name) => `color-mix(in oklab, var(${name}) 72%, transparent)`;
  byId("ramp").style.background = from0 ? `linear-gradient(90deg, transparent, ${end(above)})` :
    `linear-gradient(90deg, ${end(below)}, transparent, ${end(above)})`;
  byId("low").textContent = from0 ? "0" : number(-most);
  byId("high").textContent = number(most);
  byId("meaning").textContent = meaning;
}

function numberOf(at, name) {
  const [row, token] = at.split(":").map(Number), each = current().steps[state.step].completions[row];
  const column = each && each.columns[name];
  return column && token < column.length ? column[token] : null;
}

const choose = (at) => { state.chosen = at; showChosen(); };

function showChosen() {
  const span = tokenAt(state.chosen);
  if (span) return show(span);
  byId("card").hidden = true;
  document.querySelectorAll(".token.on").forEach((each) => each.classList.remove("on"));
}

function show(span) {
  if (!span.classList || !span.classList.contains("token")) return;
  document.querySelectorAll(".token.on").forEach((each) => each.classList.remove("on"));
  span.classList.add("on");
  const card = byId("card"), at = span.dataset.at, known = names(current());
  const table = make("table"), body = table.createTBody();
  const exact = EXACT.filter((name) => known.includes(name)), rest = known.filter((name) => !EXACT.includes(name));
  const cells = (name) => {
    const on = name === state.metric ? "now" : "";
    return name ? [make("th", LABELS[name] || about(name)[1], on), make("td", number(numberOf(at, name)), on)] : [make("th"), make("td")];
  };
  for (let i = 0; i < Math.max(exact.length, rest.length); i++) {
    body.insertRow().append(...cells(rest[i]), ...(exact.length ? cells(exact[i]) : []));
  }
  if (exact.length) {
    const row = table.createTHead().insertRow();
    for (const title of ["sampled, learned", "exact"]) row.append(Object.assign(make("th", title), { colSpan: 2 }));
  }
  const title = make("h4", span.classList.contains("end") ? "end of the completion" : span.textContent);
  card.replaceChildren(title, table);
  card.className = exact.length ? "" : "plain";
  card.hidden = false;
  const box = span.getClientRects()[0];
  if (!beside(card, box.top)) place(card, box.left + box.width / 2, box.top - 8, box.bottom + 8, true);
}

// Puts the card between all texts and their scores, where it covers none of them; returns whether there is room.
function beside(card, top) {
  const edges = (selector, side) => [...document.querySelectorAll(selector)].map((each) => each.getBoundingClientRect()[side]);
  const left = Math.max(...edges("#completions .token, #completions .prompt bdi", "right")) + 24;
  if (left + card.offsetWidth > Math.min(...edges("#completions .score", "left")) - 16) return false;
  card.style.left = left + "px";
  card.style.top = Math.max(8, Math.min(top, innerHeight - card.offsetHeight - 8)) + "px";
  return true;
}

restore();
if (data.tokens.length) start();
if (data.reload) setTimeout(() => location.reload(), 1000 * data.reload);
