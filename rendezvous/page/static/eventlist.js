// A list of events, newest first.
import { h } from "./dom.js";
import { segment } from "./api.js";
import { clock, peers, utc } from "./words.js";

const kindNames = {
  pair: "pair", attempt: "attempt", node: "node", address: "address",
  refused: "refused", community: "community", change: "change",
};
const states = new Set(["direct", "relayed", "down", "online", "offline", "running", "failed", "cancelled"]);

export const kinds = Object.keys(kindNames);

export function eventList(events, empty) {
  if (events.length === 0) return h("p", { class: "note" }, empty);
  return h("ol", { class: "events" }, events.map((e) => h("li", { id: `event-${e.id}` },
    h("time", { datetime: e.at, title: utc(e.at) }, clock(e.at)),
    h("span", { class: `state ${states.has(e.state) ? e.state : "other"}` }, e.state || kindNames[e.kind] || e.kind),
    h("span", { class: "what" }, subject(e), " ", h("span", { class: "said" }, e.text)))));
}

function subject(e) {
  if (e.pair) {
    const [a, b] = peers(e.pair);
    return h("a", { href: `#/pairs/${segment(a)}/${segment(b)}` }, `${a} ↔ ${b}`);
  }
  return e.node ? h("a", { href: `#/nodes/${segment(e.node)}` }, e.node) : null;
}
