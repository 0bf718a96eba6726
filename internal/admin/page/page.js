// The page of a sidecar: it asks, and shows. Everything that comes from outside is
// put in as text; nothing here makes HTML of a string.

const PERIOD = 2000; // ms between two looks
const PATIENCE = 5000; // ms for one answer
const SHOWN = 20; // results in each table
const PAYLOAD_SHOWN = 65536; // characters
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// --- elements -------------------------------------------------------------

// el makes an element; children are nodes or text.
function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(key, value);
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// say sets a text where it differs: what is not touched keeps its selection, and
// a screen reader is told nothing twice.
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// memo builds a node's children anew where their data has changed, and puts the
// focus back to what has the same data-k.
function memo(node, data, build) {
  const key = JSON.stringify(data);
  if (node.memo === key) return;
  node.memo = key;
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.k : undefined;
  node.replaceChildren(...[build()].flat());
  if (focused) node.querySelector(`[data-k="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// --- words and numbers ----------------------------------------------------

// visible shows what has no glyph, or turns the text around it, by its number.
// U+200C and U+200D stay: scripts and emoji are made with them.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) => String(text).replace(HIDDEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
const foreign = (text, attributes = {}) => el("bdi", attributes, visible(text));

// count writes a number with thin spaces between thousands.
const count = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const rate = (n) => (n === 0 || n >= 10 ? count(n) : n.toFixed(1));
const things = (n, one, many = one + "s") => `${count(n)} ${n === 1 ? one : many}`;

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i === 0 ? n : n.toFixed(1)} ${units[i]}`;
}

function duration(seconds) {
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

function share(part, whole) {
  const p = (100 * part) / whole;
  if (part === 0) return "0 %";
  return p < 0.1 ? "< 0.1 %" : p < 10 ? `${p.toFixed(1)} %` : `${Math.floor(p)} %`;
}

// --- time -----------------------------------------------------------------

let offset = 0; // the sidecar's clock less ours, ms
const now = () => Date.now() + offset;
const utc = (ms, digits = 19) => `${new Date(ms).toISOString().slice(0, digits).replace("T", " ")} UTC`;
const clock = (ms) => `${new Date(ms).toISOString().slice(11, 19)} UTC`;

function ago(ms) {
  const seconds = (now() - ms) / 1000;
  return seconds < 1 ? "just now" : seconds < 10 ? `${Math.floor(seconds)} s ago` : `${duration(seconds)} ago`;
}

// age is how long ago something was, which counts on; its time shows on hover, and
// on focus where it can have it.
function age(at, attributes = {}) {
  const ms = Date.parse(at);
  return el("time", { datetime: at, "data-ago": ms, "data-utc": utc(ms, 23), ...attributes }, ago(ms));
}

function countOn() {
  for (const node of document.querySelectorAll("[data-ago]")) say(node, ago(Number(node.dataset.ago)));
  if (lostSince) tellLost();
  tellPulse();
}

// --- copying --------------------------------------------------------------

function icon(path) {
  return svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: path }));
}

const COPY = "M6 5V2.5h7.5V11H11M2.5 5H10v8.5H2.5z";

function copier(text, what) {
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy ${what}`, "data-k": `copy ${text}` }, icon(COPY));
  button.addEventListener("click", async () => {
    button.dataset.done = (await copy(text, button)) ? "copied" : "press Ctrl+C";
    announce(button.dataset.done === "copied" ? `Copied ${what}` : `${what} is selected`);
    setTimeout(() => delete button.dataset.done, 1500);
  });
  return button;
}

// copy works by plain HTTP too, where browsers give pages no clipboard: then the
// text beside the button is selected and copied in the old way.
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(button.parentNode.querySelector("code, .id"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }
}

const command = (text) => el("div", { class: "type" }, el("code", {}, visible(text)), copier(text, "the command"));
const identifier = (id, what) => el("span", { class: "pair" }, el("span", { class: "id" }, id), copier(id, what));

// quote writes a word for a POSIX shell.
const quote = (text) => (/^[\w./:,=@+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

// --- the state ------------------------------------------------------------

// Each level has a shape of its own: tick, arrow, diamond, cross, broken line.
const MARKS = {
  well: "M3 13l6 6L21 5", busy: "M3 12h17M13 5l7 7-7 7", attention: "M12 2l10 10-10 10L2 12zM12 8v5M12 16.5v.1",
  trouble: "M4 4l16 16M20 4L4 20", lost: "M2 12h6M16 12h6", unknown: "M5 12h.1M12 12h.1M19 12h.1",
};

function announce(text) {
  say($("announcement"), text);
}

let told = ""; // the word that was announced last: a number in a sentence changes too often

function showVerdict(v) {
  document.documentElement.dataset.level = v.level;
  $("mark").setAttribute("d", MARKS[v.level] ?? MARKS.unknown);
  say($("word"), visible(v.word));
  say($("sentence"), visible(v.sentence));
  document.title = `${visible(v.word)} · workflow-results-sidecar`;
  if (told !== v.word) {
    announce(`${visible(v.word)}. ${visible(v.sentence)}`);
    told = v.word;
  }
  $("reason").hidden = v.level === "well" || v.level === "unknown";
  memo($("since"), v.since, () => (v.since ? ["Since ", el("span", { class: "absolute" }, utc(Date.parse(v.since))), ", ", age(v.since)] : []));
  memo($("why"), v.why, () => [foreign(v.why ?? "")]);
  memo($("do"), v.do, () => (v.do ?? []).map((s) => el("li", {}, visible(s.text), s.command ? command(s.command) : null)));
}

let status = null; // as last told
let seenAt = 0; // when, by our clock
let lostSince = 0; // when it was last there, by its clock; 0: it is there
let lostWhy = "";

function tellLost() {
  const seconds = (now() - lostSince) / 1000;
  showVerdict({
    level: "lost", word: "NO ANSWER", sentence: `the sidecar has not answered for ${seconds < 10 ? `${Math.max(0, Math.floor(seconds))} s` : duration(seconds)}`,
    since: new Date(lostSince).toISOString(),
    why: `${lostWhy} It has ended, it is being restarted, or the way to it (such as kubectl port-forward) is cut.${status ? " What stands below is of then." : ""}`,
    do: [
      { text: "This page goes on asking and recovers by itself. On the sidecar's machine, or in its container:", command: `sidecar status${status ? ` --socket ${quote(status.socket)}` : ""}` },
    ],
  });
}

function tellPulse() {
  if (paused) return say($("pulse"), `paused, as of ${seenAt ? clock(seenAt + offset) : "never"}`);
  if (lostSince) return say($("pulse"), "no answer, asking again");
  if (seenAt) say($("pulse"), "live");
}

// --- the facts ------------------------------------------------------------

// rows builds a list of terms; what is null is left out.
function rows(pairs) {
  return pairs.filter(Boolean).flatMap(([term, value, kind]) => [el("dt", {}, term), el("dd", kind ? { class: kind } : {}, ...[value].flat())]);
}

// fill keeps the rows of a list and sets their contents one by one.
function fill(list, pairs) {
  pairs = pairs.filter(Boolean);
  memo(list, pairs.map(([term, , kind]) => [term, kind]), () => rows(pairs.map(([term, , kind]) => [term, [], kind])));
  const cells = list.querySelectorAll("dd");
  pairs.forEach(([, value], i) => (typeof value === "string" ? memo(cells[i], value, () => [value]) : memo(cells[i], value.key, value.build)));
}

const BROKER_LEADS = {
  connecting: "connecting", publishing: "takes results", retrying: "does not take results", stopped: "publishing is stopped",
};

function showBroker(s) {
  const p = s.publisher;
  say($("broker-lead"), BROKER_LEADS[p.state] ?? p.state);
  const trouble = p.state !== "publishing";
  fill($("broker"), [
    ["at", visible(s.brokers.join(", "))],
    ["delivery", p.delivery],
    ["last published", p.last_published_at ? { key: p.last_published_at, build: () => [age(p.last_published_at, { tabindex: 0 })] } : "nothing yet since the start"],
    p.last_error && [trouble ? "error" : "last error", { key: [p.last_error, p.last_error_at], build: () => [foreign(p.last_error), ...(p.last_error_at ? [", ", age(p.last_error_at, { tabindex: 0 })] : [])] }, trouble ? "differs" : undefined],
  ]);
}

function showTopic(s) {
  say($("topic-lead"), visible(s.topic));
  const topics = s.publisher.topics;
  const results = topics.find((t) => t.name === s.topic);
  const drift = topics.flatMap((t) => t.drift ?? []);
  const notes = topics.filter((t) => t.note);
  fill($("topic"), [
    !results && ["partitions", "not known until a broker answers"],
    results && ["partitions", count(results.partitions)],
    results?.max_message_bytes && ["largest record", bytes(results.max_message_bytes)],
    ...topics.filter((t) => t.name !== s.topic).map((t) => ["watermarks", `${visible(t.name)}, ${things(t.partitions, "partition")}`]),
    results && ["settings", drift.length ? `${things(drift.length, "differs", "differ")} from what was asked` : notes.length ? "not compared" : "as asked for", drift.length ? "differs" : undefined],
    ...drift.map((d) => ["", `${visible(d.setting)} is ${visible(d.got)}, asked for ${visible(d.want)}${d.topic === s.topic ? "" : ` (${visible(d.topic)})`}`, "differs"]),
    ...notes.map((t) => ["note", visible(t.note)]),
  ]);
}

// bar draws how much of a limit is taken; the text beside it says the same.
function bar(part, whole) {
  const p = Math.min(1, part / whole);
  return svg("svg", { class: p > 0.5 ? "bar most" : "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "all", width: 100, height: 1 }), svg("rect", { class: "part", width: part === 0 ? 0 : Math.max(0.4, 100 * p), height: 1 }));
}

function showOutbox(s) {
  const o = s.outbox;
  say($("outbox-lead"), o.pending === 0 ? "nothing pending" : `${count(o.pending)} pending, the oldest for ${duration(o.oldest_pending_seconds)}`);
  const limit = (part, whole, text) => ({ key: [part, whole], build: () => [text, bar(part, whole)] });
  fill($("outbox"), [
    ["pending", o.pending ? `${count(o.pending)}, ${bytes(o.pending_bytes)}` : "0"],
    ["parked", o.parked ? `${count(o.parked)}, ${bytes(o.parked_bytes)}` : "0", o.parked ? "differs" : undefined],
    ["published", `${count(Math.max(0, o.held - o.pending - o.parked))} still held`],
    ["rows", limit(o.held, o.max_rows, `${count(o.held)} of ${count(o.max_rows)}, ${share(o.held, o.max_rows)}`)],
    ["bytes", limit(o.held_bytes, o.max_bytes, `${bytes(o.held_bytes)} of ${bytes(o.max_bytes)}, ${share(o.held_bytes, o.max_bytes)}`)],
    ["on disk", `${bytes(o.file_bytes)}, log ${bytes(o.wal_bytes)}`],
  ]);
}

function showAbout(s) {
  memo($("about"), [s.version, s.started_at, s.socket, s.data_dir, s.outbox.id], () => [
    "Version ", foreign(s.version), ", started ", age(s.started_at, { tabindex: 0 }), ". Socket ", el("code", {}, visible(s.socket)), ", data in ",
    el("code", {}, visible(s.data_dir)), ", outbox ", el("span", { class: "id" }, s.outbox.id), ".",
  ]);
}

// --- the last minutes -----------------------------------------------------

// ceiling is a round number at or above n.
function ceiling(n) {
  if (n <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 2.5, 5, 10].map((f) => f * power).find((c) => c >= n);
}

// ageCeiling is the same for seconds: of minutes and hours too.
const ageCeiling = (n) => [1, 2, 5, 10, 30, 60, 120, 300, 600, 1200, 3600, 7200, 6 * 3600, 12 * 3600, 86400].find((c) => c >= n) ?? Math.ceil(n / 86400) * 86400;

const MARGIN = { left: 1, right: 1, top: 16, bottom: 20 };

// Plot draws lists of numbers over time; a pointer or the arrow keys read a point.
class Plot {
  constructor(figure, { title, series, top, axis, tell }) {
    Object.assign(this, { series, top, axis, tell, title, at: null, history: null });
    this.readout = el("span", { class: "at" });
    const keys = series.map((s) => el("span", { class: "key" }, svg("svg", { viewBox: "0 0 28 12", "aria-hidden": "true" },
      ...(s.area ? [svg("path", { class: "area", d: "M0 3H28V12H0z" })] : []), svg("path", { class: s.line, d: s.area ? "M1 3H27" : "M1 6H27" })), s.name));
    this.plot = svg("svg", { class: "plot", tabindex: 0, role: "slider", "aria-label": `${title}: choose a time with the arrow keys`, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0 });
    figure.replaceChildren(el("figcaption", {}, el("span", {}, ...keys), this.readout), this.plot);
    this.plot.addEventListener("pointermove", (e) => this.point(e));
    this.plot.addEventListener("pointerdown", (e) => this.point(e));
    this.plot.addEventListener("pointerleave", () => this.choose(null));
    this.plot.addEventListener("blur", () => this.choose(null));
    this.plot.addEventListener("keydown", (e) => this.key(e));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show(history) {
    this.history = history;
    this.draw();
  }

  get length() {
    return this.history ? this.history.pending.length : 0;
  }

  time(i) {
    return Date.parse(this.history.newest_at) - (this.length - 1 - i) * this.history.step_seconds * 1000;
  }

  // index is the point of the chosen time, which moves to the left, or the newest.
  get index() {
    const last = this.length - 1;
    if (this.at === null) return last;
    return Math.max(0, last - Math.round((Date.parse(this.history.newest_at) - this.at) / (this.history.step_seconds * 1000)));
  }

  x(i) { // the newest is at the right
    return MARGIN.left + ((this.history.points - this.length + i) / (this.history.points - 1)) * (this.width - MARGIN.left - MARGIN.right);
  }

  y(value) {
    return MARGIN.top + (1 - value / this.max) * (this.height - MARGIN.top - MARGIN.bottom);
  }

  draw() {
    const box = this.plot.getBoundingClientRect();
    if (!this.history || box.width === 0) return;
    [this.width, this.height] = [box.width, box.height];
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    const lists = this.series.map((s) => this.history[s.list]);
    this.max = this.top(Math.max(0, ...lists.flat()));
    const parts = [this.grid(0, ""), this.grid(this.max, this.axis(this.max)), ...this.times()];
    if (this.length > 1) lists.forEach((list, n) => parts.push(...this.trace(list, this.series[n])));
    else parts.push(svg("text", { class: "none", x: this.width / 2, y: this.height / 2, "text-anchor": "middle" }, "The first points come in a few seconds."));
    this.cursor = svg("g", {});
    this.plot.replaceChildren(...parts, this.cursor);
    this.read();
  }

  grid(value, text) {
    const y = Math.round(this.y(value));
    return svg("g", {}, svg("line", { class: "grid", x1: 0, x2: this.width, y1: y, y2: y }), svg("text", { x: 0, y: y - 4 }, text));
  }

  times() {
    const span = (this.history.points * this.history.step_seconds) / 60;
    const y = this.height - 5;
    return [
      svg("text", { x: 0, y }, `${span} min ago`), svg("text", { x: this.width / 2, y, "text-anchor": "middle" }, `${span / 2} min ago`),
      svg("text", { x: this.width, y, "text-anchor": "end" }, "now"),
    ];
  }

  trace(list, series) {
    const line = list.map((v, i) => `${i ? "L" : "M"}${this.x(i).toFixed(1)} ${this.y(v).toFixed(1)}`).join("");
    const path = svg("path", { class: series.line, d: line });
    if (!series.area) return [path];
    const floor = this.y(0).toFixed(1);
    return [svg("path", { class: "area", d: `${line}L${this.x(list.length - 1).toFixed(1)} ${floor}L${this.x(0).toFixed(1)} ${floor}z` }), path];
  }

  point(e) {
    if (this.length === 0) return;
    const x = e.clientX - this.plot.getBoundingClientRect().left;
    const i = Math.round((x / this.width) * (this.history.points - 1)) - (this.history.points - this.length);
    this.choose(Math.max(0, Math.min(this.length - 1, i)));
  }

  key(e) {
    const last = this.length - 1;
    const at = this.index;
    const to = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - 30, PageUp: at + 30, Home: 0, End: last }[e.key];
    if (e.key === "Escape") return this.choose(null);
    if (to === undefined || last < 0) return;
    e.preventDefault();
    this.choose(Math.max(0, Math.min(last, to)));
  }

  choose(i) {
    this.at = i === null ? null : this.time(i);
    this.read();
  }

  // read writes the chosen point, or the newest, in words.
  read() {
    if (this.length === 0) return say(this.readout, "");
    const last = this.length - 1;
    const i = this.index;
    const ms = this.time(i);
    const text = `${this.at === null ? "now" : clock(ms)}: ${this.tell(this.history, i)}`;
    say(this.readout, text);
    for (const [name, value] of [["aria-valuemax", last], ["aria-valuenow", i], ["aria-valuetext", text]]) this.plot.setAttribute(name, value);
    this.cursor?.replaceChildren(...(this.at === null ? [] : [
      svg("line", { class: "cursor", x1: this.x(i), x2: this.x(i), y1: MARGIN.top, y2: this.height - MARGIN.bottom }),
      ...this.series.map((s) => svg("circle", { class: "dot", r: 3, cx: this.x(i), cy: this.y(this.history[s.list][i]) })),
    ]));
  }
}

const plots = [
  new Plot($("rates"), {
    title: "Accepted and published per second", top: ceiling, axis: (n) => `${rate(n)} per second`,
    series: [{ name: "published", list: "published_per_second", line: "edge", area: true }, { name: "accepted", list: "accepted_per_second", line: "ink" }],
    tell: (h, i) => `accepted ${rate(h.accepted_per_second[i])}/s, published ${rate(h.published_per_second[i])}/s`,
  }),
  new Plot($("ages"), {
    title: "Age of the oldest pending result", top: ageCeiling, axis: duration,
    series: [{ name: "age of the oldest pending", list: "oldest_pending_seconds", line: "edge", area: true }],
    tell: (h, i) => (h.pending[i] === 0 ? "none pending" : `${duration(h.oldest_pending_seconds[i])}, ${count(h.pending[i])} pending`),
  }),
];

let lastHistory = null;

function showHistory(h) {
  lastHistory = h;
  for (const plot of plots) plot.show(h);
  showFigures();
}

// showFigures is what the plots show, as a table, for who cannot see them.
function showFigures() {
  if (!$("figures").open || !lastHistory) return;
  const h = lastHistory;
  const step = Math.round(30 / h.step_seconds);
  const mean = (list, to) => list.slice(Math.max(0, to - step + 1), to + 1).reduce((a, b) => a + b, 0) / Math.min(step, to + 1);
  const body = [];
  for (let i = h.pending.length - 1; i >= 0; i -= step) {
    const ms = Date.parse(h.newest_at) - (h.pending.length - 1 - i) * h.step_seconds * 1000;
    body.push([clock(ms).slice(0, 8), `${rate(mean(h.accepted_per_second, i))}/s`, `${rate(mean(h.published_per_second, i))}/s`, h.pending[i] ? duration(h.oldest_pending_seconds[i]) : "–", count(h.pending[i])]);
  }
  memo($("figures-table"), body, () => body.length === 0 ? "Nothing yet." : el("table", {},
    el("caption", { class: "unseen" }, "Rates, oldest pending result and number of pending results by the half minute"),
    el("thead", {}, el("tr", {}, ...["until, UTC", "accepted", "published", "oldest pending", "pending"].map((t) => el("th", { scope: "col" }, t)))),
    el("tbody", {}, ...body.map((cells) => el("tr", {}, ...cells.map((c, n) => el(n ? "td" : "th", n ? {} : { scope: "row" }, c)))))));
}

// --- results --------------------------------------------------------------

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const CHIPS = { pending: "M3 12h17M13 5l7 7-7 7", published: MARKS.well, parked: "M12 2l10 10-10 10L2 12z" };

function chip(state) {
  return el("span", { class: `chip ${state}` }, svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: CHIPS[state] ?? "" })), state);
}

const place = (r) => (r.topic === null ? "" : `partition ${r.partition}, offset ${r.offset}`);
const took = (r) => `${duration(Math.max(0, (Date.parse(r.published_at) - Date.parse(r.accepted_at)) / 1000))} later`;

// link leads to the way of one result.
function link(r, at) {
  const ms = Date.parse(at);
  return el("a", { href: `#id=${r.event_id}`, "data-k": `way ${r.event_id}`, "data-ago": ms, "data-utc": utc(ms, 23), "aria-description": `Show the way of the result of ${visible(r.workflow_id).slice(0, 80)}` }, ago(ms));
}

const ids = (r) => el("td", { role: "cell", class: "ids" },
  el("span", { class: "pair" }, el("span", { class: "label" }, "correlation"), el("span", { class: "id" }, r.correlation_id), copier(r.correlation_id, "the correlation ID")),
  el("span", { class: "pair" }, el("span", { class: "label" }, "event"), el("span", { class: "id" }, r.event_id), copier(r.event_id, "the event ID")));

const what = (r) => el("td", { role: "cell", class: "what" }, foreign(r.workflow_id, { class: "text", title: visible(r.workflow_id) }),
  el("span", { class: "second" }, foreign(r.workflow_run_id, { class: "text", title: visible(r.workflow_run_id) })));

const TABLES = {
  newest: {
    heads: ["accepted", "workflow and run", "IDs", "state"],
    row: (r) => [
      el("td", { role: "cell", class: "when" }, link(r, r.accepted_at), el("span", { class: "second" }, r.status)),
      what(r), ids(r),
      el("td", { role: "cell", class: "which" }, chip(r.state), el("span", { class: "second" }, r.state === "published" && r.topic !== null ? place(r) : "")),
    ],
  },
  parked: {
    heads: ["parked", "workflow and run", "IDs", "reason"],
    row: (r) => [
      el("td", { role: "cell", class: "when" }, link(r, r.parked_at), el("span", { class: "second" }, r.status)),
      what(r), ids(r), el("td", { role: "cell", class: "reasons" }, foreign(r.reason, { class: "text", title: visible(r.reason) })),
    ],
  },
};

// fillTable keeps the rows that stay, by event ID and what they show.
function fillTable(name, results, empty) {
  const at = $(`${name}-table`);
  if (results.length === 0) return memo(at, "none", () => [el("p", { class: "none" }, empty)]);
  const { heads, row } = TABLES[name];
  memo(at, "some", () => [el("table", { role: "table", "aria-labelledby": `h-${name}` },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...heads.map((t) => el("th", { role: "columnheader", scope: "col" }, t)))), el("tbody", { role: "rowgroup" }))]);
  const body = at.querySelector("tbody");
  const old = new Map([...body.children].map((tr) => [tr.dataset.key, tr]));
  const next = results.map((r) => {
    const key = [r.event_id, r.seq, r.state].join(" ");
    return old.get(key) ?? el("tr", { role: "row", "data-key": key }, ...row(r));
  });
  if (next.length !== body.children.length || next.some((tr, i) => tr !== body.children[i])) body.replaceChildren(...next);
}

// held reports that somebody is in a table: then its rows stay where they are.
const held = (name) => $(`${name}-table`).matches(":hover") || $(`${name}-table`).contains(document.activeElement);

function showLists(newest, parked) {
  const o = status.outbox;
  for (const name of ["newest", "parked"]) $(name).hidden = false;
  if (!held("parked")) fillTable("parked", parked, "None: Kafka has refused no result for good.");
  say($("parked-hint"), o.parked > parked.length ? `The newest ${parked.length} of ${count(o.parked)}. All: sidecar outbox list --state parked --socket ${quote(status.socket)}` : "");
  if (!held("newest")) fillTable("newest", newest, "None yet. A result shows here as soon as the socket has taken it.");
  say($("newest-hint"), held("newest") ? "Held still while you are in it." : o.held > newest.length ? `${newest.length} of ${count(o.held)} that are held.` : "");
  for (const name of ["newest", "parked"]) $(`${name}-hint`).hidden = $(`${name}-hint`).textContent === "";
}

function showOff() {
  memo($("off"), status.socket, () => [
    el("p", {}, "Results are not shown on this address. It has no login, so that is for you to decide: start the sidecar with ", el("code", {}, "--admin-results"), " (or ", el("code", {}, "SIDECAR_ADMIN_RESULTS=true"), ") and this page shows"),
    el("ul", {}, el("li", {}, "a search by correlation ID or event ID, with the way the result took: accepted, committed, published where and when, or parked and why;"), el("li", {}, "the newest results, and the parked ones with their reasons."), el("li", {}, "Payloads stay hidden, unless ", el("code", {}, "--show-payload"), " is given as well.")),
    el("p", {}, "Until then, beside the sidecar:"), command(`sidecar outbox list --socket ${quote(status.socket)} --correlation-id ID`),
  ]);
}

// --- the search -----------------------------------------------------------

let sought = null; // {id, results, error}

async function find(id) {
  id = id.trim().toLowerCase();
  $("id").value = id;
  if (!UUID.test(id)) {
    $("id").setAttribute("aria-invalid", "true");
    sought = { id, error: id === "" ? "Type or paste an ID first." : "That is no UUID: it has 36 characters, such as 0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e." };
    return showFound();
  }
  $("id").removeAttribute("aria-invalid");
  history.replaceState(null, "", `#id=${id}`);
  sought = { id };
  await seek();
}

// seek asks by both kinds of ID: the caller need not know which one it is. What
// comes after another search has begun is not shown.
async function seek() {
  const id = sought.id;
  let found;
  try {
    const listed = (await ask(`v1/results?correlation_id=${id}&newest=true&limit=${SHOWN}`)).results;
    let results = listed;
    let by = "correlation ID";
    if (listed.length === 0 || listed.every((r) => r.correlation_id !== id)) {
      const one = await ask(`v1/results/${id}`, [404]);
      [results, by] = [one ? [one] : [], "event ID"];
    }
    found = { id, results, by, more: listed.length === SHOWN };
  } catch (error) {
    found = { id, error: `The search failed: ${error.message}` };
  }
  if (sought.id !== id) return;
  sought = found;
  showFound();
}

function showFound() {
  memo($("found"), sought, () => {
    announce(sought.error ?? (sought.results.length === 0 ? "No result with this ID is in this sidecar." : `${things(sought.results.length, "result")} with this ${sought.by}: ${sought.results.map((r) => r.state).join(", ")}.`));
    if (sought.error) return [el("p", { class: "none" }, visible(sought.error))];
    if (sought.results.length === 0) return [el("p", { class: "none" }, "No result with this ID is in this sidecar. It was never accepted here, or it is published and its window of deduplication is over. Ask the workflow's log which sidecar took it; in Kafka it is found by its correlation ID:"),
      command(`sidecar await --brokers ${quote(status.brokers.join(","))} --topic ${quote(status.topic)} --since 168h --timeout 30s --correlation-id ${sought.id}`)];
    const n = sought.results.length;
    return [
      el("p", { class: "hint" }, `${sought.more ? `The newest ${n} results` : things(n, "result")} with this ${sought.by}.`),
      el("div", {}, ...sought.results.map(way)),
    ];
  });
}

const step = (kind, ...children) => el("li", kind ? { class: kind } : {}, ...children);
const moment = (at) => [el("span", { class: "soft" }, `${utc(Date.parse(at), 23)}, `), age(at, { class: "soft" })];

// way is what happened to one result, in order.
function way(r) {
  const steps = [
    step("", el("b", {}, "Accepted"), " and synced to disk", el("br"), ...moment(r.accepted_at)),
    step("", el("b", {}, "Committed"), ` as seq ${r.seq}`, el("br"), el("span", { class: "soft" }, `${bytes(r.bytes)} in the outbox`)),
  ];
  if (r.state === "published" && r.topic !== null) {
    steps.push(step("", el("b", {}, "Published"), " to ", foreign(r.topic), `, ${place(r)}`, el("br"), ...moment(r.published_at), el("span", { class: "soft" }, ` (${took(r)})`)));
  } else if (r.state === "published") {
    steps.push(step("", el("b", {}, "Published"), el("p", { class: "soft" }, "Where and when is not known: the watermark in Kafka told so after a restart.")));
  } else if (r.state === "parked") {
    steps.push(step("stop", el("b", {}, "Parked"), ": Kafka refuses it", el("br"), ...moment(r.parked_at), el("p", {}, foreign(r.reason)),
      el("p", { class: "soft" }, "Remove the cause, then try it again; or remove it for good."),
      command(`sidecar outbox retry --socket ${quote(status.socket)} ${r.event_id}`), command(`sidecar outbox purge --yes --socket ${quote(status.socket)} ${r.event_id}`)));
  } else {
    steps.push(step("open", el("b", {}, "Waits"), " to be published", el("br"), el("span", { class: "soft" }, "This line changes by itself when it is.")));
  }
  const terms = el("dl", {}, ...rows([
    ["workflow", foreign(r.workflow_id)], ["run", foreign(r.workflow_run_id)], ["status", r.status], ["state", chip(r.state)],
    ["correlation", identifier(r.correlation_id, "the correlation ID")], ["event", identifier(r.event_id, "the event ID")],
  ]));
  return el("article", { class: "way", "aria-label": `Result ${r.event_id}` }, terms, el("ol", { class: "steps", "aria-label": "The way it took" }, ...steps), payloadOf(r));
}

function payloadOf(r) {
  if (!status.shows.payloads) return el("p", { class: "payload hint" }, "Payloads are not shown: that needs --show-payload beside --admin-results.");
  const button = el("button", { type: "button", "data-k": `payload ${r.event_id}` }, "Show the payload");
  const at = el("div", { class: "payload" }, button);
  button.addEventListener("click", async () => {
    let shown;
    try {
      shown = payloadIn(await askText(`v1/results/${r.event_id}?payload=true`));
    } catch (error) {
      shown = el("p", {}, `It cannot be shown: ${visible(error.message)}`);
    }
    at.replaceChildren(shown);
    shown.focus();
  });
  return at;
}

// payloadIn cuts the payload out of an answer as it stands: read and written again,
// its numbers and spaces would not be those that were sent. A quotation mark within
// a string is escaped, so the name is found where it is meant.
function payloadIn(text) {
  const name = ',"result":';
  const raw = text.slice(text.indexOf(name) + name.length, text.lastIndexOf("}"));
  if (raw === "null") return el("p", { tabindex: -1 }, "The payload is not kept any more: its history window is over.");
  const cut = raw.length > PAYLOAD_SHOWN ? `${raw.slice(0, PAYLOAD_SHOWN)}\n… ${count(raw.length - PAYLOAD_SHOWN)} characters more` : raw;
  return el("pre", { tabindex: 0, "aria-label": "Payload" }, cut.split("\n").map(visible).join("\n"));
}

$("form").addEventListener("submit", (e) => {
  e.preventDefault();
  find($("id").value);
});

// followHash opens what the address names: a row's link, or one that somebody was sent.
async function followHash(focus) {
  const match = /^#id=(.+)$/.exec(location.hash);
  if (!match || !status?.shows.results) return;
  await find(decodeURIComponent(match[1]));
  if (focus) {
    $("find").scrollIntoView();
    $("found").focus({ preventScroll: true });
  }
}
addEventListener("hashchange", () => followHash(true));

// --- asking ---------------------------------------------------------------

async function fetchText(path, allowed = []) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
  const text = await answer.text();
  if (answer.ok) return text;
  if (allowed.includes(answer.status)) return null;
  let detail = "";
  try {
    detail = JSON.parse(text).detail;
  } catch {
    // whatever stands between us and the sidecar answered, not in JSON
  }
  throw new Error(`it answers ${answer.status}${detail ? `: ${detail}` : ""}`);
}

const askText = (path) => fetchText(path);

async function ask(path, allowed) {
  const text = await fetchText(path, allowed);
  return text === null ? null : JSON.parse(text);
}

const list = async (query) => (await ask(`v1/results?${query}&newest=true&limit=${SHOWN}`)).results;

async function look() {
  const [s, h] = await Promise.all([ask("v1/status"), ask("v1/history")]);
  const lists = s.shows.results ? await Promise.all([list("after=0"), list("state=parked")]).catch((error) => error) : null;
  const first = status === null;
  offset = Date.parse(s.now) - Date.now();
  [status, seenAt, lostSince] = [s, Date.now(), 0];
  showVerdict(s.verdict);
  showBroker(s);
  showTopic(s);
  showOutbox(s);
  showAbout(s);
  showHistory(h);
  $("searching").hidden = !s.shows.results;
  $("off").hidden = s.shows.results;
  if (!s.shows.results) {
    showOff();
    for (const name of ["newest", "parked"]) $(name).hidden = true;
  } else if (lists instanceof Error) {
    say($("newest-hint"), `The lists cannot be read: ${visible(lists.message)}`);
  } else {
    showLists(...lists);
  }
  if (first) await followHash(true);
  else if (sought?.results?.some((r) => r.state !== "published")) await seek();
}

let paused = false;
let timer = 0;
let looking = false;
let looks = 0;

// cycle looks once and plans the next look; one at a time, and none while nobody
// can see the page.
async function cycle() {
  clearTimeout(timer);
  if (looking || paused || document.hidden) return;
  looking = true;
  try {
    await look();
  } catch (error) {
    lostSince ||= seenAt ? seenAt + offset : now();
    lostWhy = error instanceof SyntaxError ? "What answers is not the sidecar." : error.message.startsWith("it answers") ? `Instead of the state, ${visible(error.message)}.` : "";
    tellLost();
  } finally {
    looking = false;
  }
  tellPulse();
  document.documentElement.dataset.looks = String(++looks); // for the tests: one more look has ended
  timer = setTimeout(cycle, PERIOD);
}

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  tellPulse();
  cycle();
});
$("figures").addEventListener("toggle", showFigures);
document.addEventListener("visibilitychange", cycle);
setInterval(() => document.hidden || countOn(), 1000);
cycle();
