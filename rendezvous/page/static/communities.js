// The communities: who may talk to whom.
import { get } from "./api.js";
import { h, show, table } from "./dom.js";
import { nodeLink, note } from "./parts.js";
import { number } from "./words.js";

export const title = "Communities";

// membersShown is how many members stand there before the reader asks for more.
const membersShown = 24;

export function open(root) {
  let communities = null, online = new Map();

  const member = (name) => h("li", {}, online.has(name) ? nodeLink(name) : name,
    !online.has(name) ? h("span", { class: "note" }, " (never joined)") : !online.get(name) && h("span", { class: "note" }, " (offline)"));

  function members(c) {
    const more = c.members.slice(membersShown);
    return [
      h("ul", { class: "members" }, c.members.slice(0, membersShown).map(member)),
      more.length > 0 && h("details", {}, h("summary", {}, `${number(more.length)} more`), h("ul", { class: "members" }, more.map(member))),
    ];
  }

  function draw() {
    if (!communities) return;
    show(root,
      h("h1", { tabindex: "-1" }, "Communities"),
      table({
        label: "Communities", rows: communities, key: (c) => c.name, empty: ["No community yet: ", h("code", {}, "bodkin community apply -f FILE")],
        columns: [
          { name: "Community", cell: (c) => [c.name, c.punch !== "auto" && note(`punch: ${c.punch}`)] },
          { name: "Online", class: "num", cell: (c) => `${number(c.members.filter((m) => online.get(m)).length)} of ${number(c.members.length)}` },
          { name: "Members", cell: members },
          { name: "Source", cell: (c) => c.source },
        ],
      }));
  }

  return {
    draw,
    async load() {
      const [list, nodes] = await Promise.all([get("communities"), get("nodes")]);
      communities = list.communities;
      online = new Map(nodes.nodes.map((n) => [n.name, n.online]));
      draw();
    },
    wants: (e) => e.kind === "community" || e.kind === "node",
  };
}
