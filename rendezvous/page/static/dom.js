// Building elements, and bringing what stands in the document in line with what
// was built: scroll position, focus, selection and unfolded details stay.

const svgSpace = "http://www.w3.org/2000/svg";

// h makes an HTML element. Children are elements, texts, or lists of them; null
// and false are nothing. A text never becomes markup.
export function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

// s makes an SVG element.
export function s(name, attributes, ...children) {
  return fill(document.createElementNS(svgSpace, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false) element.append(child); // strings become text nodes
  }
  return element;
}

// show makes the children of an element those given.
export function show(element, ...children) {
  const is = element.cloneNode(false);
  fill(is, null, children);
  morphChildren(element, is);
}

// morph makes node "was" equal to node "is". Children with an id are matched by
// it, all others by position.
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
  const theirs = "open"; // the reader unfolds and folds details
  for (const { name } of [...was.attributes]) {
    if (name !== theirs && !is.hasAttribute(name)) was.removeAttribute(name);
  }
  for (const { name, value } of is.attributes) {
    if (name !== theirs && was.getAttribute(name) !== value) was.setAttribute(name, value);
  }
  morphChildren(was, is);
}

function morphChildren(was, is) {
  const focused = document.activeElement;
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
  // A row that was moved has lost the focus.
  if (document.activeElement !== focused && focused?.isConnected) focused.focus({ preventScroll: true });
}

// table makes a table that becomes a list of "name: value" on a narrow screen.
// Columns are {name, class, cell(row), blank(row)}; the first is the row's header.
export function table({ label, columns, rows, key, head, empty }) {
  if (rows.length === 0) return h("p", { class: "note" }, empty);
  const th = head ?? ((column) => h("th", { scope: "col", class: column.class }, column.name));
  return h("div", { class: "wide", role: "region", "aria-label": label, tabindex: "0" },
    h("table", {},
      h("thead", {}, h("tr", {}, columns.map(th))),
      h("tbody", {}, rows.map((row) => h("tr", { id: key && `row-${key(row)}` }, columns.map((column, i) => {
        const content = [column.cell(row)].flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false && c !== "");
        const classes = [column.class, content.length === 0 && "blank"].filter(Boolean).join(" ") || null;
        if (i === 0) return h("th", { scope: "row", class: classes }, content);
        return h("td", { "data-label": column.name, class: classes }, content.length ? content : h("span", { class: "none" }, "–"));
      }))))));
}
