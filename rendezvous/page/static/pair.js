// One pair: how it stands, and every attempt from both sides.
import { get, post, segment } from "./api.js";
import { h, show } from "./dom.js";
import { eventList } from "./eventlist.js";
import { facts, marked, nextTry, nodeLink, note, state, time } from "./parts.js";
import { candidateTable, stepTable, timeline } from "./timeline.js";
import { endpoint, expectWords, kindWords, millis, natWords, strategyWords } from "./words.js";

export const title = ([a, b]) => `${a} ↔ ${b}`;

// Widths of the diagram, in pixels: more does not help the eye.
const narrowest = 300, widest = 860;
// inset is what an attempt's border and padding take of the width, in pixels.
const inset = 36;

export function open(root, { params: [a, b], shared }) {
  const path = `pairs/${segment(a)}/${segment(b)}`;
  let detail = null, order = null;
  const resized = new ResizeObserver(() => draw());
  resized.observe(root);

  root.addEventListener("click", async (clicked) => {
    if (!clicked.target.closest("#punch")) return;
    order = { said: "Ordering…", after: Infinity };
    draw();
    try {
      const answer = await post(`${path}/punch`);
      order = { said: "Ordered.", after: answer.after };
    } catch (err) {
      order = { said: err.message, after: Infinity, refused: true };
    }
    draw();
  });

  function draw() {
    if (!detail) return;
    const { pair, attempts } = detail;
    show(root,
      h("h1", { tabindex: "-1" }, nodeLink(pair.nodes[0]), h("span", { class: "none" }, " ↔ "), nodeLink(pair.nodes[1]), " ", state(pair.state)),
      pair.reason && pair.state !== "direct" && h("p", { class: "lead" }, pair.reason, nextTry(pair)),
      shared.me.role === "admin" && h("div", { class: "actions" },
        h("button", { type: "button", id: "punch", class: "primary", disabled: pair.punching }, pair.punching ? "Punching…" : "Punch now"),
        progress()),
      h("div", { class: "columns" },
        h("section", { class: "panel" }, h("h2", {}, "State"), facts(
          ["State", state(pair.state), pair.state === "relayed" && pair.relay && note("through ", nodeLink(pair.relay)), pair.punching && note("punching")],
          ["Since", time(pair.since)],
          ["Expected", expected(pair.verdict), pair.verdict.reason && note(pair.verdict.reason)],
          ["Last direct", time(pair.lastDirect)],
          ["Time to direct", pair.timeToDirectMs > 0 && millis(pair.timeToDirectMs)],
          ["Attempts", String(pair.attempts), pair.strategy && note(`last ${strategyWords(pair.strategy)}${pair.packets ? `, ${pair.packets} packets` : ""}`)],
          ["Communities", (pair.communities ?? []).join(", ")])),
        h("section", { class: "panel" }, h("h2", {}, "Paths"), pair.nodes.map((name, i) => end(pair, name, pair.nodes[1 - i])))),
      h("section", {}, h("h2", {}, "Attempts"),
        attempts.length === 0 ? h("p", { class: "note" }, "None is remembered.") : attempts.map((attempt, i) => drawn(attempt, pair.nodes, i === 0))));
  }

  // progress is what has happened since the reader ordered a punch.
  function progress() {
    if (!order) return null;
    const since = shared.events.filter((e) => e.id > order.after && e.pair === detail.pair.id);
    return h("div", { id: "progress", role: "status" }, h("p", { class: order.refused ? "problem" : "note" }, order.said), since.length > 0 && eventList(since, ""));
  }

  function drawn(attempt, names, newest) {
    const width = Math.min(widest, Math.max(narrowest, root.clientWidth - inset));
    return h("details", { class: "attempt", id: `attempt-${attempt.id}`, open: newest },
      h("summary", {},
        h("span", { class: `state ${marked(attempt.outcome)}` }, attempt.outcome), " ", strategyWords(attempt.strategy), ", ", time(attempt.at),
        attempt.outcome !== "running" && `, took ${millis(attempt.elapsedMs)}`),
      attempt.reason && h("p", {}, attempt.reason),
      attempt.hopeless && h("p", { class: "note" }, "Cut short: ", attempt.hopeless),
      h("p", { class: "note" }, "Expected then: ", expected(attempt.verdict), attempt.verdict?.reason && `: ${attempt.verdict.reason}`),
      timeline(attempt, names, width),
      h("p", { class: "note" }, "Time runs downwards from the order, logarithmically; a dashed line is the wait that lets both sides start together."),
      names.map((name) => sideNote(attempt.sides?.[name], name)),
      h("details", {}, h("summary", {}, "Candidates"), candidateTable(attempt, names)),
      h("details", {}, h("summary", {}, "The same as a table"), h("div", { class: "wide", role: "region", "aria-label": "Steps", tabindex: "0" }, stepTable(attempt, names))));
  }

  return {
    draw,
    async load() {
      detail = await get(path);
      draw();
    },
    wants: (e) => e.pair === detail?.pair.id || e.node === a || e.node === b,
    close: () => resized.disconnect(),
  };
}

function expected(verdict) {
  if (!verdict?.expect) return "nothing is known";
  const { expect, how } = expectWords(verdict);
  return [expect, how].filter(Boolean).join(" ");
}

function end(pair, name, other) {
  const path = pair.paths?.[name];
  return h("div", { class: "end" }, h("h3", {}, `${name} reaches ${other}`), path
    ? facts(["At", h("span", { class: "addr" }, endpoint(path.remote))], ["Kind", kindWords(path.kind)], ["From", path.local && h("span", { class: "addr" }, endpoint(path.local))])
    : h("p", { class: "note" }, "No path of its own."));
}

function sideNote(side, name) {
  if (!side) return null;
  const { gloss } = natWords(side.nat ?? {});
  const said = [`NAT then: ${gloss}`, side.packets > 0 && `${side.packets} packets`, side.path?.remote && `path ${endpoint(side.path.remote)}`, side.reason];
  return h("p", { class: "note" }, h("strong", {}, name), " ", said.filter(Boolean).join("; "));
}
