// Pairs, those that are not direct first.
import { get } from "./api.js";
import { Cells } from "./cells.js";
import { choice, search } from "./controls.js";
import { h, show, table } from "./dom.js";
import { pairColumns } from "./parts.js";
import { number } from "./words.js";

export const title = "Pairs";

// shownAtOnce bounds the list: a community of 300 nodes has 44,850 pairs.
const shownAtOnce = 200;
// mostQuestions bounds what one list asks of the API.
const mostQuestions = 40;
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
  const why = search(query, "Reason", "reason", () => { reason = ""; ask(); }); // typed, it is a part
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

  const view = {
    draw,
    async load() {
      const name = node.value(), words = why.value();
      const states = state.value() === "" ? order : [state.value()];
      const asked = name ? await ofNodes(name, states) : ofReasons(words, states);
      const found = new Map();
      let questions = 0;
      for (const query of asked) {
        if (found.size > shownAtOnce || questions === mostQuestions) break;
        questions++;
        for (const p of (await get("pairs", query)).pairs) {
          if ((p.reason ?? "").toLowerCase().includes(words)) found.set(p.id, p);
        }
      }
      more = found.size > shownAtOnce || questions < asked.length;
      pairs = [...found.values()].slice(0, shownAtOnce);
      draw();
    },
    wants: (e) => e.kind === "pair" || e.kind === "attempt" || e.kind === "community",
    close: () => clearTimeout(timer),
  };

  // ofReasons are the questions to the API for pairs of some reasons: the one that a
  // link says in full, or those of the overview that hold what was typed. One pair
  // more than shown is asked for, to know whether there are more.
  function ofReasons(words, states) {
    const limit = shownAtOnce + 1;
    const all = shared.overview?.reasons ?? [];
    return states.flatMap((wanted) => {
      if (reason) return [{ state: wanted, reason, limit }];
      if (!words) return [{ state: wanted, limit }];
      const matching = all.filter((r) => (r.state === wanted || wanted === "punching") && r.reason.toLowerCase().includes(words));
      return matching.map((r) => ({ state: wanted, reason: r.reason, limit }));
    });
  }

  // ofNodes are those for pairs of nodes whose names hold what was typed: the matrix
  // tells which of them have any.
  async function ofNodes(name, states) {
    const cells = new Cells(await get("matrix"));
    return states.flatMap((wanted) => cells.view(name, wanted).rows.map((i) => ({ state: wanted, node: cells.nodes[i] })));
  }
  return view;
}
