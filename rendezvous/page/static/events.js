// What happened, newest first, and what happens.
import { get } from "./api.js";
import { choice, search } from "./controls.js";
import { h, show } from "./dom.js";
import { eventList, kinds } from "./eventlist.js";
import { number } from "./words.js";

export const title = "Events";

// kept is how many events the view holds, and asks for when it is opened.
const kept = 500;

export function open(root, { query, shared }) {
  let events = null, missed = [];
  const kind = choice(query, "Kind", "kind", [["", "all"], ...kinds.map((k) => [k, k])], draw);
  const filter = search(query, "Filter", "q", draw);
  const body = h("div");
  root.append(h("h1", { tabindex: "-1" }, "Events"), h("div", { class: "controls" }, kind.element, filter.element), body);

  function draw() {
    if (!events) return;
    const words = filter.value().split(/\s+/).filter(Boolean);
    const rows = events.filter((e) => (kind.value() === "" || e.kind === kind.value()) && words.every((word) => text(e).includes(word)));
    show(body,
      h("p", { class: "note", role: "status" }, `${number(rows.length)} of the last ${number(events.length)} events`),
      eventList(rows, "No event matches."));
  }

  return {
    draw,
    async load() {
      if (events) return draw(); // what follows comes by the stream
      const list = (await get("events", { limit: kept })).events;
      const last = list[0]?.id ?? 0;
      events = [...missed.filter((e) => e.id > last), ...list];
      shared.events = events.slice();
      draw();
    },
    event(e) {
      if (!events) {
        missed.unshift(e);
        return;
      }
      events.unshift(e);
      events.length = Math.min(events.length, kept);
    },
  };
}

const text = (e) => [e.kind, e.pair, e.node, e.state, e.text].join(" ").toLowerCase();
