// Refreshes the page in place: fetches it again and changes only what differs,
// so that scroll position, focus, selection and opened histories stay.
"use strict";
(() => {
  const interval = 2000; // milliseconds between two fetches while visible
  const patience = 8000; // milliseconds until a fetch counts as failed

  const stale = document.getElementById("stale");
  let current = document.querySelector(".asof time").textContent;

  // morph makes node "was" equal to node "is". Children with an id are matched
  // by it, all others by position.
  function morph(was, is) {
    if (was.isEqualNode(is)) return;
    if (was.nodeName !== is.nodeName) {
      was.replaceWith(is);
      return;
    }
    if (was.nodeType !== Node.ELEMENT_NODE) {
      was.nodeValue = is.nodeValue;
      return;
    }
    morphAttributes(was, is);

    const wanted = new Set([...is.children].map((child) => child.id).filter(Boolean));
    const known = new Map();
    for (const child of [...was.children]) {
      if (!child.id) continue;
      if (wanted.has(child.id)) known.set(child.id, child);
      else child.remove();
    }
    let at = was.firstChild;
    for (const child of [...is.childNodes]) {
      const match = child.id ? known.get(child.id) : undefined;
      if (match) {
        if (match === at) at = at.nextSibling;
        else was.insertBefore(match, at);
        morph(match, child);
      } else if (at && !at.id && !child.id) {
        const next = at.nextSibling;
        morph(at, child);
        at = next;
      } else {
        was.insertBefore(child, at);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  function morphAttributes(was, is) {
    for (const { name } of [...was.attributes]) {
      const opened = name === "open"; // a history the reader unfolded
      if (!opened && !is.hasAttribute(name)) was.removeAttribute(name);
    }
    for (const { name, value } of is.attributes) {
      if (was.getAttribute(name) !== value) was.setAttribute(name, value);
    }
  }

  async function refresh() {
    const response = await fetch(location.pathname, { signal: AbortSignal.timeout(patience) }).catch(() => {
      throw new Error("the rendezvous cannot be reached");
    });
    if (response.status === 401) throw new Error("the token is no longer accepted, reload the page");
    if (!response.ok) throw new Error(`the rendezvous answered ${response.status}: ${(await response.text()).trim()}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const page = fresh.getElementById("page");
    if (!page) throw new Error("something else than the rendezvous answered");

    const focused = document.activeElement;
    morph(document.getElementById("page"), page);
    if (document.activeElement !== focused && focused.isConnected) focused.focus({ preventScroll: true });
    current = document.querySelector(".asof time").textContent;
  }

  function show(problem) {
    const text = problem ? `Stale since ${current}: ${problem}.` : "";
    if (stale.textContent !== text) stale.textContent = text; // an unchanged alert is not announced again
    stale.hidden = !problem;
  }

  function visible() {
    if (!document.hidden) return Promise.resolve();
    return new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }

  async function run() {
    for (;;) {
      await new Promise((done) => setTimeout(done, interval));
      await visible();
      try {
        await refresh();
        show("");
      } catch (err) {
        show(err.message);
      }
    }
  }
  run();
})();
