// The matrix of all pairs, drawn on a canvas: a table of 90,000 cells is more than a
// browser can hold. The canvas shows a window of it, with the names of rows and
// columns where they fit, and is read and walked by keyboard through a line of text.
import { get } from "./api.js";
import { Cells, cellWords, filters } from "./cells.js";
import { choice, search } from "./controls.js";
import { h, show } from "./dom.js";
import { draw as paint, layout } from "./grid.js";
import { nodeLink, pairHref } from "./parts.js";
import { number } from "./words.js";

export const title = "Matrix";

// Sizes of a cell to choose from, in pixels; 0 fits the window.
const sizes = [["", "fit"], ["4", "small"], ["9", "medium"], ["18", "large"]];

// stride is how many cells PageUp and PageDown go.
const stride = 10;

export function open(root, { query }) {
  let cells = null, view = { rows: [], columns: [] }, missed = [];
  let cursor = { row: 0, column: 1 }, grid = null, frame = 0;

  const filter = search(query, "Nodes", "q", arrange, "rows, then columns");
  const state = choice(query, "Show", "state", [["", "all pairs"], ["not-direct", "not direct"], ["down", "down"], ["relayed", "relayed"], ["punching", "being punched"], ["direct", "direct"]], arrange);
  const size = choice(query, "Cells", "size", sizes, arrange);
  const count = h("p", { class: "note", role: "status" });
  const canvas = h("canvas", { tabindex: "0", role: "application", "aria-roledescription": "matrix", "aria-describedby": "matrix-keys readout", "aria-label": "Pairs by node" });
  const inside = h("div", { class: "inside" });
  const box = h("div", { class: "matrix", tabindex: "-1" }, inside, canvas);
  const readout = h("p", { id: "readout", class: "readout", "aria-live": "polite" });
  root.append(
    h("h1", { tabindex: "-1" }, "Matrix"),
    h("div", { class: "controls" }, filter.element, state.element, size.element),
    h("div", { class: "legend" }, ["direct", "relayed", "down", "punching"].map((name) => h("span", {}, h("span", { class: `swatch ${name}` }), name))),
    count, readout, box,
    h("p", { class: "note", id: "matrix-keys" }, "Arrow keys move, PageUp, PageDown, Home and End go further, N goes to the next pair that is not direct, Enter opens the pair."));

  const resized = new ResizeObserver(arrange);
  resized.observe(box);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redraw);

  // arrange makes the window anew, after what is shown or the room has changed.
  function arrange() {
    if (!cells) return;
    view = cells.view(filter.value(), state.value());
    cursor.row = Math.min(cursor.row, Math.max(0, view.rows.length - 1));
    cursor.column = Math.min(cursor.column, Math.max(0, view.columns.length - 1));
    grid = layout(cells, view, box, Number(size.value()));
    inside.style.width = `${grid.width}px`; // by the object model, which the policy permits
    inside.style.height = `${grid.height}px`;
    box.classList.toggle("empty", view.rows.length === 0 || view.columns.length === 0);
    said();
    redraw();
  }

  function redraw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (grid) paint(canvas, box, grid, cells, view, { cursor, wanted: filters[state.value()] ?? filters[""], focused: document.activeElement === canvas });
    });
  }

  function said() {
    const pairs = cells.count(view, state.value());
    count.textContent = view.rows.length === 0 || pairs === 0
      ? "No pair matches."
      : `${number(pairs)} pairs of ${number(view.rows.length)} × ${number(view.columns.length)} nodes`;
    const at = here();
    if (!at) {
      show(readout);
      return;
    }
    const name = (i) => [nodeLink(cells.nodes[i]), !cells.online[i] && " (offline)"];
    const link = at.cell !== "." && at.i !== at.j;
    const words = at.i === at.j ? "itself" : cellWords(at.cell);
    show(readout, name(at.i), " ↔ ", name(at.j), ": ", link ? h("a", { href: pairHref(idOf(at)) }, words) : words);
  }

  const here = () => {
    const i = view.rows[cursor.row], j = view.columns[cursor.column];
    return i === undefined || j === undefined ? null : { i, j, cell: cells.at(i, j) };
  };

  const idOf = ({ i, j }) => [cells.nodes[i], cells.nodes[j]].sort().join("|");

  function go(row, column) {
    cursor = { row: Math.max(0, Math.min(view.rows.length - 1, row)), column: Math.max(0, Math.min(view.columns.length - 1, column)) };
    said();
    // Into sight, beside the names that stand still.
    const x = grid.left + cursor.column * grid.cell, y = grid.top + cursor.row * grid.cell;
    if (x - box.scrollLeft < grid.left) box.scrollLeft = x - grid.left;
    if (x + grid.cell > box.scrollLeft + box.clientWidth) box.scrollLeft = x + grid.cell - box.clientWidth;
    if (y - box.scrollTop < grid.top) box.scrollTop = y - grid.top;
    if (y + grid.cell > box.scrollTop + box.clientHeight) box.scrollTop = y + grid.cell - box.clientHeight;
    redraw();
  }

  function enter() {
    const at = here();
    if (at && at.i !== at.j && at.cell !== ".") location.hash = pairHref(idOf(at)).slice(1);
  }

  // next finds the following cell that is not direct, row by row.
  function next() {
    const width = view.columns.length, all = view.rows.length * width;
    const from = cursor.row * width + cursor.column;
    for (let step = 1; step <= all; step++) {
      const at = (from + step) % all, row = Math.floor(at / width), column = at % width;
      if (filters["not-direct"](cells.at(view.rows[row], view.columns[column]))) return go(row, column);
    }
  }

  const keys = {
    ArrowUp: () => go(cursor.row - 1, cursor.column),
    ArrowDown: () => go(cursor.row + 1, cursor.column),
    ArrowLeft: () => go(cursor.row, cursor.column - 1),
    ArrowRight: () => go(cursor.row, cursor.column + 1),
    PageUp: () => go(cursor.row - stride, cursor.column),
    PageDown: () => go(cursor.row + stride, cursor.column),
    Home: () => go(cursor.row, 0),
    End: () => go(cursor.row, view.columns.length - 1),
    Enter: enter,
    n: next,
  };
  canvas.addEventListener("keydown", (pressed) => {
    if (!keys[pressed.key] || pressed.ctrlKey || pressed.metaKey || pressed.altKey || !cells || view.rows.length === 0) return;
    pressed.preventDefault();
    keys[pressed.key]();
  });

  function pointed(event) {
    const at = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - at.left + box.scrollLeft - grid.left) / grid.cell);
    const row = Math.floor((event.clientY - at.top + box.scrollTop - grid.top) / grid.cell);
    const beside = event.clientX - at.left < grid.left || event.clientY - at.top < grid.top;
    return beside || row >= view.rows.length || column >= view.columns.length ? null : { row, column };
  }
  canvas.addEventListener("pointermove", (moved) => {
    const at = grid && pointed(moved);
    if (!at || (at.row === cursor.row && at.column === cursor.column)) return;
    cursor = at;
    said();
    redraw();
  });
  canvas.addEventListener("click", (clicked) => {
    const at = grid && pointed(clicked);
    if (!at) return;
    // A finger points and opens in two taps: it cannot see what is below it.
    const again = at.row === cursor.row && at.column === cursor.column;
    cursor = at;
    said();
    redraw();
    if (clicked.pointerType !== "touch" || again) enter();
  });
  for (const name of ["focus", "blur"]) canvas.addEventListener(name, redraw);
  box.addEventListener("scroll", redraw, { passive: true });

  let dirty = false; // an event came that is not drawn yet
  let stale = false; // an event was about what the matrix does not have
  return {
    async load() {
      if (cells && !stale) return;
      stale = false;
      const matrix = await get("matrix");
      cells = new Cells(matrix);
      for (const e of missed) cells.apply(e);
      missed = [];
      arrange();
    },
    event(e) {
      if (!cells) {
        missed.push(e);
        return;
      }
      if (!cells.apply(e)) stale = true;
      dirty = true;
    },
    draw() {
      if (!dirty) return;
      dirty = false;
      if (state.value() !== "") { // who is left may have changed
        arrange();
        return;
      }
      said();
      redraw();
    },
    wants: () => stale,
    reopen: () => { stale = true; },
    close() {
      resized.disconnect();
      scheme.removeEventListener("change", redraw);
      cancelAnimationFrame(frame);
    },
  };
}
