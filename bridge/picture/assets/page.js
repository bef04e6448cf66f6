// The page of one call. Everything that people said is put in as text, never as markup.
"use strict";

const call = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const audio = byId("audio");
const seconds = Math.max(call.seconds, 0.1);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function clock(at) {
  const whole = Math.floor(at), minutes = Math.floor(whole / 60);
  const rest = (at - 60 * minutes).toFixed(1).padStart(4, "0");
  return minutes < 60 ? `${minutes}:${rest}` :
    `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

// --- the audio, decompressed when it is first played ---

let position = 0;
let loading = null;

async function load() {
  const text = byId("recording").textContent;
  const bytes = Uint8Array.from(atob(text), (it) => it.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const wav = await new Response(plain).arrayBuffer();
  const ready = new Promise((resolve, reject) => {
    audio.addEventListener("loadedmetadata", resolve, { once: true });
    audio.addEventListener("error", () => reject(new Error("this browser cannot play it")), { once: true });
  });
  audio.src = URL.createObjectURL(new Blob([wav], { type: "audio/wav" }));
  audio.preload = "auto";
  audio.load();
  await ready;
  audio.playbackRate = Number(byId("speed").value);
  audio.currentTime = position;
}

async function play() {
  try {
    loading = loading || load();
    await loading;
    await audio.play();
    byId("message").textContent = "";
  } catch (error) {
    loading = null;
    byId("message").textContent = `The audio cannot be played: ${error.message}`;
  }
}

function toggle() {
  if (audio.paused) play(); else audio.pause();
}

function goTo(at, thenPlay) {
  position = Math.min(Math.max(at, 0), seconds);
  if (audio.src) audio.currentTime = position;
  show(position);
  if (thenPlay) play();
}

// --- the picture ---

const chart = call.hasAudio || call.bars.length ? echarts.init(byId("chart")) : null;
const LEFT = 118, RIGHT = 14;

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["text", "soft", "line", "raised", "caller", "agent", "tool", "problem", "severe", "back"];
  return Object.fromEntries(names.map((name) => [name, of(name)]));
}

// Points as x, y, x, y ...: a long call has 100,000 of them, and arrays of arrays would be slow.
function peaks(encoded, begin) {
  const raw = atob(encoded), points = new Float64Array(2 * raw.length);
  for (let n = 0; n < raw.length; n++) {
    points[2 * n] = begin + n * call.step;
    points[2 * n + 1] = raw.charCodeAt(n);
  }
  return points;
}

// A NaN between two pieces breaks the line.
function joined(pieces) {
  const made = new Float64Array(pieces.reduce((size, it) => size + it.length + 2, 0));
  let at = 0;
  for (const piece of pieces) {
    made.set(piece, at);
    at += piece.length;
    made.set([piece[piece.length - 2], NaN], at);
    at += 2;
  }
  return made;
}

const waves = { caller: peaks(call.caller, 0), heard: peaks(call.heard, 0),
  unheard: joined(call.unheard.map((it) => peaks(it.peaks, it.at))) };

function bar(params, api) {
  const [x, y] = api.coord([api.value(1), api.value(0)]);
  const end = api.coord([api.value(2), api.value(0)])[0];
  const area = params.coordSys;
  const clipped = echarts.graphic.clipRectByRect(
    { x, y: y - 8, width: Math.max(end - x, 2), height: 16 },
    { x: area.x, y: area.y, width: area.width, height: area.height });
  return clipped && { type: "rect", shape: { ...clipped, r: 3 }, style: api.style() };
}

function draw() {
  const c = colours();
  const fill = { caller: c.caller, agent: c.agent, unheard: "transparent", wait: c.problem, tool: c.tool, failed: c.severe };
  const axis = { type: "value", min: 0, max: seconds, splitLine: { show: false }, axisTick: { show: false },
    axisLine: { lineStyle: { color: c.line } }, axisLabel: { show: false } };
  const names = { axisLabel: { color: c.text, fontSize: 12 }, axisTick: { show: false }, axisLine: { show: false },
    splitLine: { show: false } };
  const level = (name) => ({ type: "value", min: 0, max: 127, name, nameLocation: "middle", nameRotate: 0, nameGap: 8,
    nameTextStyle: { color: c.text, align: "right", fontSize: 12 }, axisLabel: { show: false }, axisTick: { show: false },
    axisLine: { show: false }, splitLine: { show: false } });
  const wave = (name, index, data, colour, more = {}) => ({ name, type: "line", xAxisIndex: index, yAxisIndex: index, data,
    showSymbol: false, sampling: "max", silent: true, animation: false, lineStyle: { width: 1, color: colour },
    areaStyle: { color: colour, opacity: .55 }, ...more });
  const grids = [[8, 66], [84, 66], [164, 24 * call.rows.length], [176 + 24 * call.rows.length, 24 * call.pointRows.length]];
  chart.setOption({
    animation: false,
    aria: { enabled: true, label: { description: document.title } },
    textStyle: { fontFamily: "inherit" },
    grid: grids.map(([top, height]) => ({ left: LEFT, right: RIGHT, top, height })),
    xAxis: grids.map((_, n) => n < 3 ? { ...axis, gridIndex: n } : { ...axis, gridIndex: n,
      axisLabel: { show: true, color: c.soft, formatter: clock, hideOverlap: true } }),
    yAxis: [
      { ...level("caller"), gridIndex: 0 }, { ...level("agent, heard"), gridIndex: 1 },
      { ...names, type: "category", gridIndex: 2, data: call.rows, inverse: true },
      { ...names, type: "category", gridIndex: 3, data: call.pointRows, inverse: true },
    ],
    tooltip: { renderMode: "richText", confine: true, backgroundColor: c.raised, borderColor: c.line,
      textStyle: { color: c.text, width: 340, overflow: "break" } },
    dataZoom: [
      { type: "inside", xAxisIndex: [0, 1, 2, 3], filterMode: "none", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false },
      { type: "slider", xAxisIndex: [0, 1, 2, 3], filterMode: "none", height: 16, bottom: 6, left: LEFT, right: RIGHT,
        labelFormatter: clock, textStyle: { color: c.soft }, borderColor: c.line },
    ],
    series: [
      wave("caller", 0, waves.caller, c.caller),
      wave("heard", 1, waves.heard, c.agent),
      wave("unheard", 1, waves.unheard, c.soft, { connectNulls: false, lineStyle: { width: 1, type: "dotted", color: c.soft },
        areaStyle: { color: c.soft, opacity: .2 } }),
      { type: "custom", xAxisIndex: 2, yAxisIndex: 2, renderItem: bar, encode: { x: [1, 2], y: 0 },
        data: call.bars.map((it) => ({ value: it.slice(0, 3), name: it[3], itemStyle: it[4] === "unheard" ?
          { color: "transparent", borderColor: c.soft, borderType: "dashed", borderWidth: 1 } :
          { color: fill[it[4]], opacity: .85 } })),
        tooltip: { formatter: (it) => `${clock(it.value[1])} to ${clock(it.value[2])}\n${it.name}` } },
      { type: "scatter", xAxisIndex: 3, yAxisIndex: 3, symbolSize: 9, large: false, encode: { x: 1, y: 0 },
        data: call.points.map((it) => ({ value: it.slice(0, 2), name: it[2],
          itemStyle: { color: it[0] === 0 ? c.tool : it[0] === 1 ? c.severe : c.soft, opacity: .8 } })),
        tooltip: { formatter: (it) => `${clock(it.value[1])}\n${it.name}` } },
    ],
  });
}

function zoomed() {
  const { startValue, endValue } = chart.getOption().dataZoom[0];
  return [startValue ?? 0, endValue ?? seconds];
}

function zoomTo(begin, end) {
  chart.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, startValue: Math.max(begin, 0), endValue: Math.min(end, seconds) });
}

function zoomBy(factor) {
  const [begin, end] = zoomed();
  const middle = position >= begin && position <= end ? position : (begin + end) / 2;
  const half = Math.min(Math.max((end - begin) * factor / 2, 0.5), seconds);
  zoomTo(middle - half, middle + half);
}

// --- the moving cursor ---

let wordNow = null;
const words = [];

function show(at) {
  byId("position").value = at;
  byId("position").setAttribute("aria-valuetext", clock(at));
  byId("clock").textContent = clock(at);
  const cursor = byId("cursor");
  if (chart) {
    const [begin, end] = zoomed();
    cursor.style.display = at >= begin && at <= end ? "block" : "none";
    cursor.style.left = `${chart.convertToPixel({ xAxisIndex: 0 }, at)}px`;
  }
  let low = 0, high = words.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (words[middle].at <= at) low = middle + 1; else high = middle;
  }
  const word = low && at - words[low - 1].at < 1.5 ? words[low - 1].node : null;
  if (word !== wordNow) {
    if (wordNow) wordNow.classList.remove("now");
    if (word) word.classList.add("now");
    wordNow = word;
  }
}

function follow() {
  position = audio.currentTime;
  show(position);
  const [begin, end] = chart ? zoomed() : [0, seconds];
  if (position > end || position < begin) zoomTo(position - (end - begin) * .1, position + (end - begin) * .9);
  if (!audio.paused) requestAnimationFrame(follow);
}

audio.addEventListener("play", () => { byId("play").textContent = "Pause"; follow(); });
for (const name of ["pause", "ended"]) {
  audio.addEventListener(name, () => { byId("play").textContent = "Play"; });
}

// --- the texts ---

byId("facts").append(...call.facts.map(([name, value]) => {
  const group = element("div");
  group.append(element("dt", name), element("dd", value));
  return group;
}));
document.querySelector("h1").textContent = call.title;

function look(at) {
  const [begin, end] = zoomed();
  const half = Math.min((end - begin) / 2, 10);
  zoomTo(at - half, at + half);
  goTo(at, false);
}

const FIRST = 8;  // problems that are shown; the others are one click away

function problemItem(problem) {
  const item = element("li", undefined, problem.severe ? { class: "severe" } : {});
  const link = element("a", problem.title, { href: "#player" });
  link.addEventListener("click", (event) => {
    event.preventDefault();
    look(problem.at);
    byId("player").scrollIntoView();
    byId("play").focus({ preventScroll: true });
  });
  item.append(link);
  if (problem.advice) item.append(element("p", problem.advice));
  return item;
}

byId("problems").append(...call.problems.slice(0, FIRST).map(problemItem));
const others = call.problems.slice(FIRST);
byId("more-problems").hidden = others.length === 0;
byId("more-problems").querySelector("summary").textContent = `${others.length} more`;
byId("more-problems").addEventListener("toggle", () => {
  byId("other-problems").append(...others.map(problemItem));
}, { once: true });
byId("no-problem").hidden = call.problems.length > 0;

function timeButton(at, text) {
  const button = element("button", text, { type: "button", class: "time", "aria-label": `Play from ${text}` });
  button.addEventListener("click", () => goTo(at, call.hasAudio));
  return button;
}

let struck = false;
for (const line of call.lines) {
  const item = element("li", undefined, { class: line.kind });
  const text = element("span", undefined, { class: "text" });
  for (const [at, word, heard] of line.words) {
    const node = heard ? element("span", word) : element("s", word);
    if (at !== null) {
      node.className = "word";
      node.addEventListener("click", () => goTo(at, call.hasAudio));
      words.push({ at, node });
    }
    struck = struck || !heard;
    text.append(node);
  }
  item.append(timeButton(line.at, line.clock), element("span", line.who, { class: "who" }), text);
  byId("lines").append(item);
}
words.sort((a, b) => a.at - b.at);
byId("unheard-note").hidden = !struck;

function fillTable(id, rows) {
  const body = byId(id).querySelector("tbody");
  for (const [at, text, ...cells] of rows) {
    const row = element("tr");
    const first = element("td");
    first.append(timeButton(at, text));
    row.append(first, ...cells.map((it) => element("td", it)));
    body.append(row);
  }
  byId(id).closest("section").hidden = rows.length === 0;
}

fillTable("waits", call.waits.map(([at, text, what, ...rest]) => [at, text, what, ...rest.map((it) => `${it.toFixed(2)} s`)]));
fillTable("costs", call.costs.map(([at, text, agent, status, tokensIn, tokensOut, cost]) =>
  [at, text, agent || "agent", status || "not done", tokensIn, tokensOut, cost ? cost.toFixed(4) : "-"]));

// The list is long: it is made when it is opened.
byId("all-events").addEventListener("toggle", () => {
  const list = byId("events");
  if (list.childElementCount) return;
  list.append(...call.points.map(([, at, text]) => {
    const item = element("li");
    item.append(timeButton(at, clock(at)), element("span", text));
    return item;
  }));
}, { once: true });

// --- buttons, keys, sizes ---

byId("position").max = seconds;
byId("position").addEventListener("input", (event) => goTo(Number(event.target.value), false));
byId("play").addEventListener("click", toggle);
byId("play").disabled = !call.hasAudio;
byId("speed").addEventListener("change", (event) => { audio.playbackRate = Number(event.target.value); });
byId("closer").addEventListener("click", () => zoomBy(0.5));
byId("farther").addEventListener("click", () => zoomBy(2));
byId("whole").addEventListener("click", () => zoomTo(0, seconds));

function nextProblem(step) {
  const at = call.problems.map((it) => it.at).sort((a, b) => a - b);
  const found = step > 0 ? at.find((it) => it > position + .05) : at.reverse().find((it) => it < position - .05);
  if (found !== undefined) look(found);
}

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  const pressing = ["BUTTON", "A", "SUMMARY"].includes(event.target.tagName) && event.key === " ";
  if (typing || pressing || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = { " ": () => call.hasAudio && toggle(), ArrowLeft: () => goTo(position - 5, false),
    ArrowRight: () => goTo(position + 5, false), "+": () => zoomBy(0.5), "-": () => zoomBy(2),
    n: () => nextProblem(1), p: () => nextProblem(-1) };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

if (chart) {
  draw();
  chart.getZr().on("click", (event) => {
    const at = chart.convertFromPixel({ xAxisIndex: 0 }, event.offsetX);
    if (event.offsetX >= LEFT && event.offsetY < byId("chart").clientHeight - 30) goTo(at, call.hasAudio);
  });
  chart.on("datazoom", () => show(position));
  new ResizeObserver(() => { chart.resize(); show(position); }).observe(byId("chart"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  byId("chart").setAttribute("aria-label", `${call.title}: ${call.facts.map((it) => it.join(" ")).join(", ")}`);
}
show(0);
document.documentElement.dataset.ready = performance.now().toFixed(0);
