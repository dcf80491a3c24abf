// Charts in SVG. Each stands beside a table of the same numbers for those who
// cannot see it; what matters differs in shape, not in colour alone.
import { h, s } from "./dom.js";
import { number, percent } from "./words.js";

const width = 420, height = 120, base = 96, left = 34;

// figure joins a chart and its table.
function figure(label, chart, head, rows) {
  return h("figure", {},
    chart,
    h("div", { class: "sr" }, h("table", {}, h("caption", {}, label),
      h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => (i === 0 ? h("th", { scope: "row" }, cell) : h("td", {}, cell)))))))));
}

function frame(label, most, ...marks) {
  return s("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    s("line", { class: "rule", x1: left, x2: width, y1: 8.5, y2: 8.5 }),
    s("line", { class: "axis", x1: left, x2: width, y1: base + 0.5, y2: base + 0.5 }),
    s("text", { x: left - 6, y: 12, "text-anchor": "end" }, short(most)),
    s("text", { x: left - 6, y: base + 3, "text-anchor": "end" }, "0"),
    marks);
}

const short = (n) => (n >= 10000 ? `${Math.round(n / 1000)}k` : String(n));

// distribution is a histogram of times to direct.
export function distribution(d) {
  const most = Math.max(1, ...d.counts);
  const step = (width - left) / d.counts.length;
  const scale = (base - 8) / most;
  const bound = (i) => (i < d.leMs.length ? `≤ ${brief(d.leMs[i])}` : `> ${brief(d.leMs.at(-1) ?? 0)}`);
  const total = d.counts.reduce((a, b) => a + b, 0);
  // Not every bound has room below its bar.
  const every = Math.ceil(34 / step);
  const bars = d.counts.map((count, i) => [
    s("rect", { class: "bar good", x: left + i * step + 1, width: Math.max(1, step - 2), y: base - count * scale, height: count * scale },
      s("title", {}, `${bound(i)}: ${number(count)}`)),
    i < d.leMs.length && i % every === every - 1 && s("text", { x: left + (i + 1) * step, y: base + 14, "text-anchor": "middle" }, brief(d.leMs[i])),
  ]);
  const label = total === 0 ? "Time to direct: nothing became direct" : `Time to direct of ${number(total)}: half within ${brief(d.medianMs)}, 95 % within ${brief(d.p95Ms)}`;
  return figure("Time to direct", frame(label, most, bars), ["Within", "Attempts"], d.counts.map((count, i) => [bound(i), number(count)]));
}

// brief is a bucket's bound, given in milliseconds.
export const brief = (ms) => (ms < 1000 ? `${ms} ms` : `${ms / 1000} s`);

// hours is what came of the attempts of each hour.
export function hours(list) {
  const most = Math.max(1, ...list.map((hour) => hour.direct + hour.failed));
  const step = (width - left) / Math.max(1, list.length);
  const scale = (base - 8) / most;
  const bars = list.map((hour, i) => {
    const name = hour.start.slice(11, 16);
    const direct = hour.direct * scale, failed = hour.failed * scale;
    const words = `${name}: ${number(hour.direct)} direct, ${number(hour.failed)} failed`;
    return [
      s("rect", { class: "bar good", x: left + i * step + 1, width: Math.max(1, step - 2), y: base - direct, height: direct }, s("title", {}, words)),
      s("rect", { class: "bar bad", x: left + i * step + 1.5, width: Math.max(1, step - 3), y: base - direct - failed, height: failed }, s("title", {}, words)),
      Number(name.slice(0, 2)) % 6 === 0 && s("text", { x: left + i * step + step / 2, y: base + 14, "text-anchor": i === list.length - 1 ? "end" : "middle" }, name),
    ];
  });
  const direct = list.reduce((sum, hour) => sum + hour.direct, 0), failed = list.reduce((sum, hour) => sum + hour.failed, 0);
  return figure("Attempts by hour (UTC)",
    frame(`Attempts by hour: ${number(direct)} direct, ${number(failed)} failed`, most, bars),
    ["Hour", "Direct", "Failed", "Success"],
    list.map((hour) => [hour.start.slice(0, 16).replace("T", " "), number(hour.direct), number(hour.failed), percent(hour.direct, hour.direct + hour.failed)]));
}

// shares is one bar of the states of all pairs.
export function shares(pairs) {
  const parts = ["direct", "relayed", "down"].map((name) => ({ name, count: pairs[name] })).filter((part) => part.count > 0);
  let x = 0;
  return s("svg", { class: "shares", viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" }, parts.map(({ name, count }) => {
    const w = (count / pairs.total) * 1000;
    // What is few must not vanish.
    const bar = s("rect", { class: `bar ${name}`, x, y: name === "direct" ? 3 : 0, height: name === "direct" ? 4 : 10, width: Math.max(4, w - 2) });
    x += w;
    return bar;
  }));
}
