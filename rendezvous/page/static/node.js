// One node: what is known of it, where it was seen, and its pairs.
import { get, now, segment } from "./api.js";
import { h, show, table } from "./dom.js";
import { facts, note, pairColumns, problem, state, time } from "./parts.js";
import { idleCell, natCell, refused } from "./nodes.js";
import { endpoint, known, number, utc } from "./words.js";

export const title = ([name]) => name;

// pairsShown bounds the list: a node of a large community has hundreds.
const pairsShown = 500;

const urgency = { down: 0, relayed: 1, direct: 2 };

export function open(root, { params: [name] }) {
  let node = null, pairs = [];

  function draw() {
    if (!node) return;
    const e = node.endpoint ?? {};
    show(root,
      h("h1", { tabindex: "-1" }, node.name, " ", state(node.online ? "online" : "offline")),
      refused(node).map((text) => problem(text)),
      h("div", { class: "columns" },
        h("section", { class: "panel" }, h("h2", {}, "Node"), facts(
          [node.online ? "Online since" : "Offline since", time(node.since)],
          ["NAT behaviour", natCell(node)],
          ["Observed at", [node.observed, node.observed6].filter(Boolean).map((a) => h("span", { class: "line addr" }, endpoint(a))), node.observedAt && [note("confirmed ", time(node.observedAt), node.observedBy && ` by ${node.observedBy}`)]],
          ["Type", e.type],
          ["Subnets", (e.subnets ?? []).join(", ")],
          ["Node subnets", (e.nodeSubnets ?? []).join(", ")],
          ["Public addresses", (e.publicAddresses ?? []).join(", "), e.port ? `, port ${e.port}` : null],
          ["Idle, each peer and day", idleCell(node)],
          ["IKE identity", e.id],
          ["Agent", node.agentVersion],
          ["Pairs", `${number(node.pairs.direct)} direct, ${number(node.pairs.relayed)} relayed, ${number(node.pairs.down)} down`])),
        h("div", { class: "stack" },
          h("section", { class: "panel" }, h("h2", {}, "Observed mappings"), mappings(node)),
          h("section", { class: "panel" }, h("h2", {}, "Admission"), admission(node),
            h("h2", {}, "Certificates"), certificates(node)))),
      h("section", {}, h("h2", {}, "Pairs"),
        table({ label: `Pairs of ${node.name}`, columns: pairColumns(node.name), rows: pairs, key: (p) => p.id, empty: "It shares no community with anybody." }),
        pairs.length < node.pairs.total && h("p", { class: "note" }, `${number(pairs.length)} of ${number(node.pairs.total)} pairs shown.`)));
  }

  return {
    draw,
    async load() {
      const [detail, list] = await Promise.all([get(`nodes/${segment(name)}`), get("pairs", { node: name, limit: pairsShown })]);
      node = detail;
      pairs = list.pairs.sort((a, b) => (urgency[a.state] ?? 0) - (urgency[b.state] ?? 0) || (a.id < b.id ? -1 : 1));
      draw();
    },
    wants: (e) => e.node === name || (e.pair ?? "").split("|").includes(name) || e.kind === "change",
  };
}

function admission({ admission: a }) {
  return facts(
    ["State", state(a.state)],
    ["Since", known(a.since) !== null && time(a.since)],
    ["By", a.by],
    ["Reason", a.reason],
    ["Subnets", (a.subnets ?? []).join(", ")],
    ["Punching", a.punch && a.punch !== "auto" ? a.punch : null],
    ["Note", a.note]);
}

function certificates(node) {
  return [
    table({
      label: "Certificates", rows: node.certificates ?? [], empty: "None was issued by this rendezvous.",
      columns: [
        { name: "Serial", class: "addr", cell: (c) => c.serial },
        { name: "State", cell: (c) => (known(c.revoked) !== null ? [state("revoked"), note(time(c.revoked))] : known(c.notAfter) < now() ? "expired" : "good") },
        { name: "Expires", cell: (c) => utc(c.notAfter).slice(0, 10) },
      ],
    }),
    node.certificateSHA256 && h("p", { class: "note" }, "In use, SHA-256: ", h("span", { class: "addr wrap" }, node.certificateSHA256)),
  ];
}

function mappings(node) {
  return table({
    label: "Observed mappings", rows: node.history ?? [], empty: "It was never observed.",
    columns: [
      { name: "Address", class: "addr", cell: (o) => endpoint(o.addr) },
      { name: "Seen by", cell: (o) => o.means },
      { name: "First", cell: (o) => time(o.at) },
      { name: "Last", cell: (o) => time(known(o.last) === null ? o.at : o.last) },
    ],
  });
}
