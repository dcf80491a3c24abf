// The overview: what there is, why pairs are not direct, and what happens.
import { brief, distribution, hours, shares } from "./charts.js";
import { h, show } from "./dom.js";
import { eventList } from "./eventlist.js";
import { number, percent } from "./words.js";

export const title = "Overview";

// reasonsShown is how many reasons stand there before the reader asks for more.
const reasonsShown = 10;
// eventsShown is how many of the last events stand there.
const eventsShown = 15;

export function open(root, { shared }) {
  function draw() {
    const o = shared.overview;
    if (!o) return;
    show(root,
      h("h1", { class: "sr", tabindex: "-1" }, "Overview"),
      tiles(o),
      o.pairs.total > 0 && shares(o.pairs),
      h("div", { class: "columns" },
        h("div", { class: "stack" },
          h("section", { class: "panel" }, h("h2", {}, "Why pairs are not direct"), reasons(o)),
          h("section", { class: "panel" }, h("h2", {}, "Attempts by hour", note("last 24 h, UTC")), hours(o.hours),
            h("p", { class: "legend" }, h("span", {}, h("span", { class: "key good" }), "direct"), h("span", {}, h("span", { class: "key" }), "failed")))),
        h("div", { class: "stack" },
          h("section", { class: "panel" }, h("h2", {}, "Time to direct", note("last 24 h")), distribution(o.timeToDirect),
            h("p", { class: "legend" }, o.timeToDirect.medianMs > 0
              ? `Half within ${brief(o.timeToDirect.medianMs)}, 95 % within ${brief(o.timeToDirect.p95Ms)}.`
              : "Nothing became direct.")),
          h("section", { class: "panel" }, h("h2", {}, "Events", h("a", { class: "more", href: "#/events" }, "all")),
            eventList(shared.events.slice(0, eventsShown), "Nothing has happened yet.")))));
  }
  return {
    draw,
    async load() {
      if (!shared.overview) await shared.refresh();
      draw();
    },
    // What changes counts; the shell fetches them anew and has them drawn.
    wants: (e) => e.kind !== "address",
    refreshes: true,
  };
}

const note = (text) => h("span", { class: "more" }, text);

function tiles(o) {
  const of = (n, whole) => h("span", { class: "of" }, ` of ${number(whole)}`);
  const tile = (id, name, href, value, more, mark) => h("div", { class: mark, id: `tile-${id}` }, h("dt", {}, h("a", { href }, name)), h("dd", {}, h("b", {}, value), more));
  const { nodes, pairs } = o;
  return h("dl", { class: "tiles" },
    tile("nodes", "Nodes online", "#/nodes", number(nodes.online), of(nodes.online, nodes.total)),
    nodes.pending > 0 && tile("pending", "Nodes waiting", "#/nodes?q=pending", number(nodes.pending), h("span", { class: "of" }, " for approval"), "attention"),
    nodes.revoked > 0 && tile("revoked", "Nodes revoked", "#/nodes?q=revoked", number(nodes.revoked)),
    tile("direct", "Pairs direct", "#/pairs?state=direct", number(pairs.direct), [of(pairs.direct, pairs.total), h("span", { class: "of" }, `, ${percent(pairs.direct, pairs.total)}`)], "mark direct"),
    tile("relayed", "Pairs relayed", "#/pairs?state=relayed", number(pairs.relayed), null, "mark relayed"),
    tile("down", "Pairs down", "#/pairs?state=down", number(pairs.down), null, pairs.down > 0 ? "mark down attention" : "mark down"),
    tile("punching", "Being punched", "#/pairs?state=punching", number(pairs.punching)),
    tile("success", "Success, 24 h", "#/events", o.successRate === undefined ? "–" : percent(o.successRate, 1), null),
    tile("median", "Time to direct", "#/events", o.timeToDirect.medianMs > 0 ? `≤ ${brief(o.timeToDirect.medianMs)}` : "–", h("span", { class: "of" }, " median")));
}

function reasons(o) {
  if (o.pairs.total === 0) return h("p", { class: "note" }, "No pairs yet: apply a community that two nodes are members of.");
  if (o.reasons.length === 0) return h("p", { class: "note" }, "All pairs are direct.");
  const row = (r) => h("li", {},
    h("span", { class: "count" }, number(r.pairs)),
    h("span", { class: `state ${r.state === "relayed" ? "relayed" : "down"}` }, r.state),
    h("a", { href: `#/pairs?${new URLSearchParams({ state: r.state, reason: r.reason })}` }, r.reason || "no reason is known"));
  const more = o.reasons.slice(reasonsShown);
  return [
    h("ul", { class: "reasons" }, o.reasons.slice(0, reasonsShown).map(row)),
    more.length > 0 && h("details", {}, h("summary", {}, `${more.length} more reasons, ${number(more.reduce((n, r) => n + r.pairs, 0))} pairs`), h("ul", { class: "reasons" }, more.map(row))),
  ];
}
