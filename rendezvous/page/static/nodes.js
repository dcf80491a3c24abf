// All nodes, to be filtered and sorted.
import { get } from "./api.js";
import { choice, keep, search } from "./controls.js";
import { h, show, table } from "./dom.js";
import { nodeLink, note, state, time } from "./parts.js";
import { bytes, endpoint, known, natWords, number, span } from "./words.js";

export const title = "Nodes";

// Columns with what they sort by.
const columns = [
  { name: "Node", by: (n) => n.name, cell: (n) => [nodeLink(n.name), n.endpoint.type === "Connector" && note("connector")] },
  { name: "State", by: (n) => (n.online ? 1 : 0), cell: (n) => [state(n.online ? "online" : "offline"), admission(n)] },
  { name: "Since", by: (n) => -(known(n.since) ?? 0), cell: (n) => time(n.since) },
  { name: "NAT behaviour", class: "nat", by: (n) => natWords(n.nat).gloss, cell: natCell },
  { name: "Observed at", class: "addr", by: (n) => n.observed ?? "", cell: (n) => [n.observed, n.observed6].filter(Boolean).map((a) => h("span", { class: "line" }, endpoint(a))) },
  { name: "Addresses", says: "Addresses it was observed at, as far back as is kept", class: "num", by: (n) => -(n.history?.length ?? 0), cell: (n) => (n.history?.length ? String(n.history.length) : null) },
  { name: "Idle a day", says: "Bytes that each peer costs a day while nothing flows", class: "num", by: (n) => -perPeer(n.usage), cell: (n) => n.usage && h("span", { title: counted(n.usage) }, bytes(perPeer(n.usage))) },
  { name: "Agent", by: (n) => n.agentVersion, cell: (n) => [n.agentVersion, refused(n).map((text) => h("span", { class: "line problem" }, text))] },
];

export function open(root, { query }) {
  let nodes = null;
  const filter = search(query, "Filter", "q", draw);
  const only = choice(query, "Show", "state", [["", "all"], ["online", "online"], ["offline", "offline"], ["refused", "with refusals"]], draw);
  const body = h("div");
  root.append(h("h1", { tabindex: "-1" }, "Nodes"), h("div", { class: "controls" }, filter.element, only.element), body);

  body.addEventListener("click", (clicked) => {
    const button = clicked.target.closest("button[data-column]");
    if (!button) return;
    const [by, down] = sorted();
    query.set("sort", by === button.dataset.column && !down ? `-${by}` : button.dataset.column);
    keep(query);
    draw();
  });

  function sorted() {
    const by = query.get("sort") || "Node";
    return by.startsWith("-") ? [by.slice(1), true] : [by, false];
  }

  function draw() {
    if (!nodes) return;
    const [by, down] = sorted();
    const key = (columns.find((c) => c.name === by) ?? columns[0]).by;
    const wanted = filter.value().split(/\s+/).filter(Boolean);
    const rows = nodes.filter((n) => shown(n, only.value()) && wanted.every((word) => text(n).includes(word)));
    rows.sort((a, b) => compare(key(a), key(b)) * (down ? -1 : 1) || compare(a.name, b.name));
    show(body,
      h("p", { class: "note", role: "status" }, `${number(rows.length)} of ${number(nodes.length)} nodes`),
      table({
        label: "Nodes", columns, rows, key: (n) => n.name, empty: nodes.length ? "No node matches." : "No node has joined yet.",
        head: (column) => h("th", { scope: "col", class: column.class, "aria-sort": column.name === by ? (down ? "descending" : "ascending") : null },
          h("button", { type: "button", "data-column": column.name, title: column.says }, column.name)),
      }));
  }

  return {
    draw,
    async load() {
      nodes = (await get("nodes")).nodes;
      draw();
    },
    wants: (e) => e.kind === "node" || e.kind === "address" || e.kind === "refused" || e.kind === "change",
  };
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

function shown(n, only) {
  if (only === "online") return n.online;
  if (only === "offline") return !n.online;
  if (only === "refused") return refused(n).length > 0;
  return true;
}

const text = (n) => [n.name, n.online ? "online" : "offline", natWords(n.nat).gloss, natWords(n.nat).behaviour, endpoint(n.observed), endpoint(n.observed6),
  n.endpoint.type, n.agentVersion, n.admission, ...limits(n), ...refused(n)].join(" ").toLowerCase();

// What an operator has yet to do, or has done, about a node.
const admission = (n) => n.admission && n.admission !== "approved" && h("span", { class: "line" }, state(n.admission));

export function natCell(n) {
  const { gloss, behaviour } = natWords(n.nat);
  return [gloss, behaviour && h("span", { class: "line note behaviour", title: behaviour }, behaviour), limits(n).map((limit) => note(limit))];
}

// limits say what keeps a node from being punched to in every way.
function limits(n) {
  return [
    n.punch && n.punch !== "auto" && `punch: ${n.punch}`,
    n.noProbe && `cannot open many ports: ${n.noProbe}`,
    n.metered && "metered: pinged rarely",
  ].filter(Boolean);
}

// refused says what was refused of a node.
export function refused(n) {
  return [
    n.refusedSessions > 0 && (n.refusal || `${n.refusedSessions} sessions refused`),
    n.refusedReports > 0 && `${n.refusedReports} reports refused`,
  ].filter(Boolean);
}

// perPeer is the mean of what a node's standing still costs, in bytes a day.
function perPeer(usage) {
  const all = Object.values(usage?.peers ?? {});
  return all.length ? Math.floor(all.reduce((a, b) => a + b, 0) / all.length) : 0;
}

export function idleCell(n) {
  if (!n.usage) return null;
  return [bytes(perPeer(n.usage)), note(`signalling ${bytes(n.usage.signalling)}, STUN ${bytes(n.usage.stun)}`), note(counted(n.usage))];
}

const counted = (usage) => `counted over ${span(usage.seconds * 1000)}, ${Object.keys(usage.peers ?? {}).length} peers`;
