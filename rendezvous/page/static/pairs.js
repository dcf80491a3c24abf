// Pairs, those that are not direct first.
import { get } from "./api.js";
import { choice, search } from "./controls.js";
import { h, show, table } from "./dom.js";
import { pairColumns } from "./parts.js";
import { number } from "./words.js";

export const title = "Pairs";

// shownAtOnce bounds the list: a community of 300 nodes has 44,850 pairs.
const shownAtOnce = 200;
// What is typed is asked for when the reader pauses for this long, in milliseconds.
const typed = 250;

const order = ["down", "relayed", "direct"];

export function open(root, { query, shared }) {
  let pairs = null, more = false, timer = 0, reason = query.get("reason") ?? "";
  const ask = () => {
    clearTimeout(timer);
    timer = setTimeout(() => view.load().catch((err) => show(body, h("p", { class: "banner", role: "alert" }, err.message))), typed);
  };
  const state = choice(query, "State", "state", [["", "all, not direct first"], ["down", "down"], ["relayed", "relayed"], ["punching", "being punched"], ["direct", "direct"]], ask);
  const node = search(query, "Node", "node", ask);
  const why = search(query, "Reason", "reason", () => { reason = ""; ask(); });
  const body = h("div");
  root.append(h("h1", { tabindex: "-1" }, "Pairs"), h("div", { class: "controls" }, state.element, node.element, why.element), body);

  function draw() {
    if (!pairs) return;
    const total = shared.overview?.pairs.total;
    show(body,
      h("p", { class: "note", role: "status" }, more ? `The first ${number(pairs.length)} that match` : `${number(pairs.length)} pairs`, total === undefined ? "." : `, of ${number(total)} in all.`,
        more && [" Narrow them, or see all in the ", h("a", { href: "#/matrix" }, "matrix"), "."]),
      table({ label: "Pairs", columns: pairColumns(), rows: pairs, key: (p) => p.id, empty: total === 0 ? "No pairs yet: apply a community that two nodes are members of." : "No pair matches." }));
  }

  // one list of the API, one more than shown to know whether there are more.
  const list = async (asked) => (await get("pairs", { ...asked, limit: shownAtOnce + 1 })).pairs;

  const view = {
    draw,
    async load() {
      const asked = {};
      const name = node.value(), words = why.value();
      if (await isNode(name)) asked.node = name;
      if (reason) asked.reason = reason; // as a link from the overview says it, whole
      const states = state.value() === "" ? order : [state.value()];
      let found = [];
      for (const wanted of states) {
        if (found.length > shownAtOnce) break;
        found = found.concat(await list({ ...asked, state: wanted }));
      }
      found = found.filter((p) => p.id.toLowerCase().includes(name) && (p.reason ?? "").toLowerCase().includes(words));
      more = found.length > shownAtOnce;
      pairs = found.slice(0, shownAtOnce);
      draw();
    },
    wants: (e) => e.kind === "pair" || e.kind === "attempt" || e.kind === "community",
    close: () => clearTimeout(timer),
  };

  let names = null;
  // isNode reports whether a node has this very name, so that the API can look.
  async function isNode(name) {
    if (!name) return false;
    names ??= new Set((await get("matrix")).nodes);
    return names.has(name);
  }
  return view;
}
