// An attempt as a sequence diagram: two lifelines, one per node, time downwards on
// one axis from the rendezvous' order on. The axis is logarithmic, because a punch
// is decided within milliseconds and given up after seconds.
import { h, s } from "./dom.js";
import { endpoint, kindWords, millis, stepWords } from "./words.js";

// linear is the time below which the axis is linear, in milliseconds.
const linear = 20;
const scaled = (ms) => Math.log1p(Math.max(0, ms) / linear);

// Heights of a mark's label with one and with two lines, in pixels.
const oneLine = 18, twoLines = 32;
const top = 40;
// gap is the distance of the lifelines: the axis' labels stand between them. Below
// the width `narrow` a mark's time goes to its second line. All in pixels.
const gap = 96, narrowGap = 64, narrow = 480;

// moments are what one side did and saw, on the axis of both: in milliseconds since
// the order left the rendezvous.
function moments(side) {
  const at = side.offsetMs ?? 0;
  const list = [{ ms: at, words: "order received", kind: "order" }];
  for (const step of side.steps ?? []) {
    list.push({ ms: at + step.atMs, words: stepWords(step), count: step.count > 1 ? `(${step.count})` : "", kind: step.kind, remote: endpoint(step.remote), text: step.text ?? "" });
  }
  const ended = side.outcome && !(side.steps ?? []).some((step) => step.kind === "bytes" || step.kind === "failed");
  if (ended) list.push({ ms: at + (side.elapsedMs ?? 0), words: side.outcome, kind: side.outcome === "direct" ? "bytes" : side.outcome, text: side.reason ?? "" });
  return list.sort((a, b) => a.ms - b.ms);
}

// placed gives each mark a height for its label: as near to its time as the labels
// before it permit.
function placed(marks, y, heightOf) {
  let free = 0;
  return marks.map((mark) => {
    const height = heightOf(mark);
    const at = Math.max(y(mark.ms), free);
    free = at + height;
    return { ...mark, dot: y(mark.ms), at, end: free };
  });
}

// timeline draws an attempt into that many pixels.
export function timeline(attempt, names, width) {
  const sides = names.map((name) => attempt.sides?.[name]);
  const marks = sides.map((side) => (side ? moments(side) : []));
  const last = Math.max(linear, attempt.elapsedMs, ...marks.flat().map((mark) => mark.ms));
  const small = width < narrow;
  const heightOf = (mark) => (small || mark.remote || mark.text ? twoLines : oneLine);
  const labels = Math.max(0, ...marks.map((list) => list.reduce((sum, mark) => sum + heightOf(mark), 0)));
  const length = Math.max(200, labels * 1.15);
  const y = (ms) => top + 8 + (scaled(ms) / scaled(last)) * length;
  const lists = marks.map((list) => placed(list, y, heightOf));
  const height = Math.max(y(last), ...lists.flat().map((mark) => mark.end)) + 20;
  const apart = small ? narrowGap : gap;
  const x = [Math.round((width - apart) / 2), Math.round((width + apart) / 2)];
  const room = x[0] - 22; // for a label, in pixels

  return s("svg", { class: "timeline", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(attempt, names, marks) },
    axis(y, last, width, x),
    sides.map((side, i) => lifeline(side, names[i], lists[i], { x: x[i], to: i === 0 ? -1 : 1, room, y, end: y(last), small })));
}

function axis(y, last, width, x) {
  const ticks = [0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 60000].filter((ms) => ms <= last);
  let free = -Infinity;
  return ticks.map((ms) => {
    const at = Math.round(y(ms)) + 0.5;
    if (at < free) return null;
    free = at + 22;
    return [
      s("line", { class: "rule", x1: x[0], x2: x[1], y1: at, y2: at }),
      s("text", { class: "tick", x: (x[0] + x[1]) / 2, y: at - 4, "text-anchor": "middle" }, ms < 1000 ? `${ms} ms` : `${ms / 1000} s`),
    ];
  });
}

function lifeline(side, name, marks, { x, to, room, y, end, small }) {
  const anchor = to < 0 ? "end" : "start";
  const waits = side && side.startAfterMs > 0;
  const from = side ? y(side.offsetMs ?? 0) : top;
  return s("g", {},
    s("text", { class: "name", x: x - to * 4, y: 16, "text-anchor": anchor }, fit(name, room + 18, 7)),
    s("text", { class: "role", x: x - to * 4, y: 31, "text-anchor": anchor }, side ? [side.role, side.part && `, ${partWords(side.part)}`].filter(Boolean).join("") : "no part known"),
    side && s("line", { class: "life", x1: x, x2: x, y1: from, y2: end }),
    waits && s("line", { class: "wait", x1: x, x2: x, y1: from, y2: y((side.offsetMs ?? 0) + side.startAfterMs) }),
    marks.map((mark) => {
      const more = [small && `${millis(mark.ms)} ${mark.count ?? ""}`.trim(), mark.remote, mark.text].filter(Boolean).join(" ");
      const at = Math.round(mark.at);
      return s("g", {},
        s("title", {}, `${name}, ${millis(mark.ms)}: ${mark.words} ${mark.count ?? ""} ${mark.remote ?? ""} ${mark.text ?? ""}`),
        s("path", { class: "lead", d: `M${x + to * 5} ${mark.dot}L${x + to * 12} ${at}H${x + to * 16}` }),
        shape(mark.kind, x, mark.dot),
        s("text", { class: "label", x: x + to * 20, y: at + 4, "text-anchor": anchor }, mark.words, !small && [mark.count && ` ${mark.count}`, " ", s("tspan", { class: "at" }, millis(mark.ms))]),
        more && s("text", { class: "more", x: x + to * 20, y: at + 17, "text-anchor": anchor }, fit(more, room, 6.4)));
    }));
}

// shape is a mark: what ends an attempt is not told by colour alone.
function shape(kind, x, y) {
  if (kind === "bytes") return s("path", { class: "dot good", d: `M${x - 6} ${y}l4 5l8 -9` });
  if (kind === "failed" || kind === "lost") return s("path", { class: "dot bad", d: `M${x - 5} ${y - 5}l10 10m0 -10l-10 10` });
  if (kind === "nominated" || kind === "hit") return s("path", { class: "dot full", d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z` });
  return s("circle", { class: kind === "heard" ? "dot full" : "dot", cx: x, cy: y, r: 4 });
}

const partWords = (part) => ({ open: "opens ports", search: "searches" }[part] ?? part);

// fit cuts a text to that many pixels, given what a character takes.
function fit(text, room, each) {
  const most = Math.max(4, Math.floor(room / each));
  return text.length <= most ? text : text.slice(0, most - 1) + "…";
}

function spoken(attempt, names, marks) {
  const ends = names.map((name, i) => `${name}: ${marks[i].at(-1)?.words ?? "nothing known"}`);
  return `Attempt ${attempt.outcome}. ${ends.join("; ")}. The table below says the same.`;
}

// stepTable says what the diagram shows.
export function stepTable(attempt, names) {
  const rows = names.flatMap((name) => (attempt.sides?.[name] ? moments(attempt.sides[name]).map((mark) => ({ name, ...mark })) : []));
  rows.sort((a, b) => a.ms - b.ms);
  return h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, ["Time", "Node", "Step", "Address", "More"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, h("td", { class: "num" }, millis(row.ms)), h("th", { scope: "row" }, row.name), h("td", {}, row.words, row.count && ` ${row.count}`), h("td", { class: "addr" }, row.remote ?? ""), h("td", {}, row.text ?? "")))));
}

// candidateTable says what each side was given to try.
export function candidateTable(attempt, names) {
  return names.filter((name) => attempt.sides?.[name]).map((name) => h("p", { class: "candidates" }, h("strong", {}, name), " ",
    (attempt.sides[name].candidates ?? []).map((c) => h("span", { class: "candidate" }, kindWords(c.kind), " ", h("span", { class: "addr" }, endpoint(c.addr))))));
}
