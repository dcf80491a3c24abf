// The shell: which view the location's hash names, what all views share, and the
// banners over them.
import { get, now } from "./api.js";
import { h, show } from "./dom.js";
import { follow } from "./live.js";
import * as overview from "./overview.js";
import { known, span, utc } from "./words.js";

// Views by the first parts of the hash; most are loaded when they are opened.
const views = [
  [/^$/, async () => overview],
  [/^nodes$/, () => import("./nodes.js")],
  [/^nodes\/([^/]+)$/, () => import("./node.js")],
  [/^matrix$/, () => import("./matrix.js")],
  [/^pairs$/, () => import("./pairs.js")],
  [/^pairs\/([^/]+)\/([^/]+)$/, () => import("./pair.js")],
  [/^communities$/, () => import("./communities.js")],
  [/^events$/, () => import("./events.js")],
];

// All in milliseconds. Events can come by the hundred: what they change is fetched
// at most once in `pause`. `tick` is how often ages are said anew, `refreshed` how
// often everything is fetched without an event; `flicker` is how long events are
// gathered before they are drawn.
const pause = 500;
const flicker = 100;
const tick = 5000;
const refreshed = 30000;

// eventsKept is how many events the page remembers.
const eventsKept = 500;

const main = document.getElementById("main");
const $ = (id) => document.getElementById(id);

// shared is what more than one view shows.
const shared = { overview: null, events: [], me: { who: "", role: "" }, refresh: refreshOverview };

let view = null; // the one that is open
let opened = 0; // counts views, so that a slow one does not open over another
let loading = null; // of the view
let due = 0; // timer of the next load
let cutSince = null;

// --- views

async function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const mine = ++opened;
  view?.close?.();
  view = null;
  clearTimeout(due);
  for (const link of document.querySelectorAll("#views a")) {
    const to = link.getAttribute("href").slice(2);
    const here = to === path || (to !== "" && path.startsWith(to + "/"));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const [pattern, load] = views.find(([p]) => p.test(path)) ?? [];
  if (!load) {
    main.replaceChildren(h("h1", { tabindex: "-1" }, "There is no such view"), h("p", {}, h("a", { href: "#/" }, "Overview")));
    return;
  }
  const params = pattern.exec(path).slice(1).map(decoded);
  try {
    const module = await load();
    if (mine !== opened) return;
    const root = h("div", { class: "view" });
    main.replaceChildren(root);
    const said = module.title instanceof Function ? module.title(params) : module.title;
    document.title = `${said} · Bodkin rendezvous`;
    view = module.open(root, { params, query: new URLSearchParams(query), shared });
    await reload();
    if (mine === opened && mine > 1) (root.querySelector("h1") ?? main).focus({ preventScroll: true });
  } catch (err) {
    if (mine === opened) fail(err);
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

// reload has the open view fetched anew; while that goes on, once more is noted.
async function reload() {
  const mine = view;
  if (!mine) return;
  if (loading === mine) {
    mine.again = true;
    return;
  }
  loading = mine;
  try {
    await mine.load();
    if (mine === view) $("view-error")?.remove();
  } catch (err) {
    if (mine === view) fail(err);
  } finally {
    if (loading === mine) loading = null;
  }
  if (mine === view && mine.again) {
    mine.again = false;
    soon();
  }
}

// fail says why the open view cannot be shown, above what it shows still.
function fail(err) {
  $("view-error")?.remove();
  main.prepend(h("p", { class: "banner", id: "view-error", role: "alert" }, err.message));
}

function soon() {
  clearTimeout(due);
  due = setTimeout(async () => {
    const before = view;
    await refreshOverview().catch(() => {});
    if (view === before && view && !view.refreshes) await reload();
  }, pause);
}

// --- what all views share

async function refreshOverview() {
  const o = await get("overview");
  shared.overview = o;
  const problems = [o.problem && ["Not ready: ", o.problem], o.trouble && ["", o.trouble]].filter(Boolean);
  show($("problems"), problems.map(([lead, text]) => h("p", { class: "banner" }, h("strong", {}, lead), text)));
  const since = known(o.since);
  $("version").textContent = [o.version && `Version ${o.version}`, since !== null && `running for ${span(now() - since)}`].filter(Boolean).join(", ");
  if (view?.refreshes) view.draw();
}

async function whoami() {
  shared.me = await get("whoami");
  const local = shared.me.who === "loopback";
  $("who").textContent = `${shared.me.who} (${shared.me.role})`;
  $("login").hidden = !local;
  $("logout").hidden = local;
  view?.draw?.();
}

// --- the stream

let pending = false; // a load is due
let redraw = 0; // timer of the next drawing of events

function event(e) {
  shared.events.unshift(e);
  shared.events.length = Math.min(shared.events.length, eventsKept);
  view?.event?.(e);
  redraw ||= setTimeout(() => {
    redraw = 0;
    view?.draw?.();
  }, flicker);
  if (!view?.wants?.(e) || pending) return;
  pending = true; // not put off by what follows: a busy hour has to show, too
  setTimeout(() => {
    pending = false;
    refreshOverview().catch(() => {});
    if (view && !view.refreshes) reload();
  }, pause);
}

function stream(connected, why) {
  $("stream").className = `state ${connected ? "online" : "waiting"}`;
  $("stream").textContent = connected ? "live" : "reconnecting";
  const stale = $("stale");
  if (connected) {
    cutSince = null;
    stale.hidden = true;
    return;
  }
  cutSince ??= new Date(now()).toISOString();
  const text = `Stale since ${utc(cutSince)}: ${why}. Reconnecting.`;
  if (stale.textContent !== text) stale.textContent = text; // an unchanged alert is not announced again
  stale.hidden = false;
}

async function follows() {
  const list = await get("events", { limit: 100 }).catch(() => null);
  if (list) {
    shared.events = list.events;
    view?.draw?.();
  }
  let before = false;
  follow(shared.events[0]?.id ?? 0, {
    event,
    opened() {
      stream(true);
      if (before) { // what the rendezvous did meanwhile may be more than it remembers
        view?.reopen?.();
        soon();
      }
      before = true;
    },
    cut: (why) => stream(false, why),
  });
}

// --- start

$("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", route);
setInterval(() => { if (!document.hidden) view?.draw?.(); }, tick);
setInterval(() => { if (!document.hidden) soon(); }, refreshed);

const first = refreshOverview();
first.catch(() => {}); // the view says so
if (/^#?\/?$/.test(location.hash)) shared.refresh = () => first; // not twice at the start
route().then(() => {
  shared.refresh = refreshOverview;
  performance.mark("bodkin-rendered");
});
whoami().catch(() => {});
follows();
