// Pieces that several views show.
import { h } from "./dom.js";
import { now, segment } from "./api.js";
import { ago, endpoint, expectWords, kindWords, known, millis, peers, span, utc } from "./words.js";

// state is a state as a word and a mark of a shape of its own.
export const state = (name) => h("span", { class: `state ${marked(name)}` }, name);

// marked keeps what came in a message from naming a class that means another thing.
const marks = new Set(["direct", "relayed", "down", "online", "offline", "running", "failed", "cancelled", "approved", "pending", "revoked"]);
export const marked = (name) => (marks.has(name) ? name : "other");

export function time(value) {
  if (known(value) === null) return h("span", { class: "none" }, "never");
  return h("time", { datetime: value, title: utc(value) }, ago(now(), value));
}

export const note = (...words) => h("span", { class: "line note" }, words);

export const nodeLink = (name) => h("a", { href: `#/nodes/${segment(name)}` }, name);

export function pairHref(id) {
  const [a, b] = peers(id);
  return `#/pairs/${segment(a)}/${segment(b)}`;
}

function pairLink(id) {
  const [a, b] = peers(id);
  return h("a", { href: pairHref(id) }, a, h("span", { class: "none" }, " ↔ "), b);
}

// facts is a list of names and values; a value that is nothing is left out.
export function facts(...list) {
  return h("dl", { class: "facts" }, list.map(([name, ...value]) => {
    const content = value.flat(Infinity).filter((v) => v !== null && v !== undefined && v !== false && v !== "");
    return content.length > 0 && h("div", {}, h("dt", {}, name), h("dd", {}, content));
  }));
}

// pairColumns are those of every list of pairs. seenFrom is the node whose list it
// is: the pair is named by the other one then.
export function pairColumns(seenFrom) {
  return [
    { name: seenFrom ? "Peer" : "Pair", cell: (p) => (seenFrom ? h("a", { href: pairHref(p.id) }, p.nodes.find((n) => n !== seenFrom) ?? p.id) : pairLink(p.id)) },
    { name: "State", cell: (p) => [state(p.state), p.state === "relayed" && p.relay && h("span", { class: "line note via" }, `through ${p.relay}`), p.punching && note("punching")] },
    { name: "Reason if not direct", class: "reason", cell: (p) => [p.reason, nextTry(p)] },
    { name: "Expected", cell: (p) => expected(p.verdict) },
    { name: "Path", cell: (p) => paths(p) },
    { name: "Time to direct", class: "num", cell: (p) => (p.timeToDirectMs > 0 ? millis(p.timeToDirectMs) : null) },
    { name: "Attempts", class: "num", cell: (p) => String(p.attempts) },
    { name: "Last change", cell: (p) => time(p.since) },
  ];
}

export function nextTry(pair) {
  const at = known(pair.retryAt);
  if (pair.state === "direct" || pair.punching || at === null || at <= now()) return null;
  return note(`next attempt in ${span(at - now())}`);
}

function expected(verdict) {
  const { expect, how } = expectWords(verdict);
  return expect && h("span", { class: "expected", title: verdict.reason || null }, [expect, how].filter(Boolean).join(" "));
}

function paths(pair) {
  return pair.nodes.map((name, i) => {
    const path = pair.paths?.[name];
    if (!path) return null;
    return h("span", { class: "line addr", title: `${name} reaches ${pair.nodes[1 - i]} at ${endpoint(path.remote)}, ${kindWords(path.kind)}` },
      endpoint(path.remote) || kindWords(path.kind));
  });
}

// problem is a banner.
export const problem = (...words) => h("p", { class: "banner" }, words);
