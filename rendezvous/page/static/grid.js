// Drawing a window of the matrix on a canvas. A cell's mark has a shape of its own
// besides its colour, and the more ink the worse: direct is a dot, relayed a half,
// down a full cell; what is being punched is hollow. Where cells are too small for
// shapes, the states differ in lightness.

// Cells are no smaller than this in pixels, or a finger and an eye lose them; when
// they fit the window they are no larger than that.
const smallest = 3, largestFit = 20;
// shaped is from which size of a cell on a shape can be told from another.
const shaped = 6;
// legible is from which size of a cell on its node's name is written beside it.
const legible = 11;
const font = "11px system-ui, sans-serif";
const character = 6.2; // pixels, of that font, about
const longestName = 170; // pixels

// layout decides sizes, all in CSS pixels: of a cell, of the names left and top, and
// of the whole.
export function layout(cells, { rows, columns }, box, wanted) {
  const names = (list) => Math.min(longestName, 12 + character * Math.max(0, ...list.map((i) => label(cells, i).length)));
  const clusters = 64; // names of clusters, where those of nodes have no room
  const room = { width: box.clientWidth, height: box.clientHeight };
  const fitting = (left, top) => Math.floor(Math.min((room.width - left) / Math.max(1, columns.length), Math.max((room.height - top) / Math.max(1, rows.length), 4)));
  let cell = wanted || Math.max(smallest, Math.min(largestFit, fitting(clusters, 20)));
  if (!wanted && cell >= legible) cell = Math.max(legible, Math.min(largestFit, fitting(names(rows), names(columns))));
  const narrow = room.width < 500;
  const left = cell >= legible ? Math.min(names(rows), narrow ? 110 : longestName) : narrow ? 20 : clusters;
  const top = cell >= legible ? names(columns) : 20;
  return { cell, left, top, width: left + columns.length * cell, height: top + rows.length * cell };
}

// draw paints what of the grid is in sight.
export function draw(canvas, box, grid, cells, view, { cursor, wanted, focused }) {
  const scale = devicePixelRatio || 1;
  const width = Math.min(box.clientWidth, Math.ceil(grid.width) + 1), height = Math.min(box.clientHeight, Math.ceil(grid.height) + 1);
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const ink = { text: colour("text"), muted: colour("muted"), ground: colour("ground"), raised: colour("raised"), rule: colour("rule"), link: colour("link"), d: colour("cell-good"), tint: colour("cell-good-tint"), r: colour("cell-fair"), x: colour("cell-bad") };
  g.fillStyle = ink.ground;
  g.fillRect(0, 0, width, height);

  const first = { row: Math.floor(box.scrollTop / grid.cell), column: Math.floor(box.scrollLeft / grid.cell) };
  const last = {
    row: Math.min(view.rows.length, Math.ceil((box.scrollTop + height - grid.top) / grid.cell)),
    column: Math.min(view.columns.length, Math.ceil((box.scrollLeft + width - grid.left) / grid.cell)),
  };
  const x = (column) => grid.left + column * grid.cell - box.scrollLeft;
  const y = (row) => grid.top + row * grid.cell - box.scrollTop;

  g.save();
  g.beginPath();
  g.rect(grid.left, grid.top, width - grid.left, height - grid.top);
  g.clip();
  for (let row = first.row; row < last.row; row++) {
    for (let column = first.column; column < last.column; column++) {
      const i = view.rows[row], j = view.columns[column];
      const cell = i === j ? "=" : cells.at(i, j);
      g.globalAlpha = i === j || cell === "." || wanted(cell) ? 1 : 0.18;
      mark(g, cell, x(column), y(row), grid.cell, ink);
    }
  }
  g.globalAlpha = 1;
  clusterLines(g, cells, view, x, y, first, last, ink, { width, height });
  g.restore();
  axes(g, grid, cells, view, x, y, first, last, ink, cursor, { width, height });
  crosshair(g, grid, x(cursor.column), y(cursor.row), ink, focused, { width, height });
}

// mark draws one cell.
function mark(g, cell, x, y, size, ink) {
  const gap = size >= shaped ? 1 : 0;
  const s = size - gap;
  switch (cell) {
    case "d": {
      if (size < shaped) {
        g.fillStyle = ink.tint;
        g.fillRect(x, y, size, size);
        return;
      }
      const dot = Math.max(1, Math.round(s * 0.45));
      const at = Math.floor((s - dot) / 2);
      g.fillStyle = ink.d;
      g.fillRect(x + at, y + at, dot, dot);
      return;
    }
    case "r":
      g.fillStyle = ink.r;
      if (size < shaped) {
        g.fillRect(x, y, size, size);
        return;
      }
      triangle(g, x, y, s);
      g.fill();
      return;
    case "x":
      g.fillStyle = ink.x;
      g.fillRect(x, y, s, s);
      return;
    case "R":
    case "X": {
      const colour = cell === "R" ? ink.r : ink.x;
      if (size < shaped) {
        g.fillStyle = colour;
        g.fillRect(x, y, size, size);
        g.fillStyle = ink.ground;
        g.fillRect(x + 1, y + 1, size - 2, size - 2);
        return;
      }
      g.strokeStyle = colour;
      g.lineWidth = 1.5;
      if (cell === "R") triangle(g, x + 1, y + 1, s - 2);
      else {
        g.beginPath();
        g.rect(x + 1, y + 1, s - 2, s - 2);
      }
      g.stroke();
      return;
    }
    case "=":
      g.fillStyle = ink.raised;
      g.fillRect(x, y, s, s);
  }
}

function triangle(g, x, y, s) {
  g.beginPath();
  g.moveTo(x, y + s);
  g.lineTo(x + s, y + s);
  g.lineTo(x + s, y);
  g.closePath();
}

const cluster = (name) => name.split(".")[0];

// clusterLines part clusters from each other.
function clusterLines(g, cells, { rows, columns }, x, y, first, last, ink, { width, height }) {
  g.fillStyle = ink.rule;
  const parts = (list, at) => at > 0 && cluster(cells.nodes[list[at]]) !== cluster(cells.nodes[list[at - 1]]);
  for (let row = first.row; row < last.row; row++) if (parts(rows, row)) g.fillRect(0, y(row) - 1, width, 1);
  for (let column = first.column; column < last.column; column++) if (parts(columns, column)) g.fillRect(x(column) - 1, 0, 1, height);
}

// axes write the names of nodes, or of clusters where those have no room.
function axes(g, grid, cells, { rows, columns }, x, y, first, last, ink, cursor, { width, height }) {
  g.font = font;
  g.textBaseline = "middle";
  g.fillStyle = ink.ground;
  g.fillRect(0, 0, width, grid.top);
  g.fillRect(0, 0, grid.left, height);
  const single = grid.cell >= legible;
  const write = (text, room) => {
    const most = Math.floor(room / character);
    g.fillText(text.length <= most ? text : "…" + text.slice(1 - Math.max(2, most)), 0, 0); // names differ at their ends
  };
  const at = (left, top, angle, text, room, strong) => {
    g.save();
    g.translate(left, top);
    g.rotate(angle);
    g.fillStyle = strong ? ink.text : ink.muted;
    write(text, room);
    g.restore();
  };
  if (single) {
    g.save();
    g.beginPath();
    g.rect(0, grid.top, grid.left, height);
    g.clip();
    for (let row = first.row; row < last.row; row++) at(4, y(row) + grid.cell / 2, 0, label(cells, rows[row]), grid.left - 6, row === cursor.row);
    g.restore();
    g.save();
    g.beginPath();
    g.rect(grid.left, 0, width, grid.top);
    g.clip();
    for (let column = first.column; column < last.column; column++) at(x(column) + grid.cell / 2, grid.top - 4, -Math.PI / 2, label(cells, columns[column]), grid.top - 6, column === cursor.column);
    g.restore();
    return;
  }
  // A run of one cluster is named at its beginning, or where it comes into sight.
  for (const run of runs(cells, rows, first.row, last.row)) {
    const from = Math.max(grid.top, y(run.from)), length = y(run.to) - from;
    if (grid.left < 40) {
      if (length > 30) at(10, Math.min(from + length, height) - 2, -Math.PI / 2, run.name, length - 4, false);
    } else if (length >= 12) at(2, from + 7, 0, run.name, grid.left - 4, false);
  }
  for (const run of runs(cells, columns, first.column, last.column)) {
    const from = Math.max(grid.left, x(run.from)), length = x(run.to) - from;
    if (length > 24) at(from, 10, 0, run.name, length - 4, false);
  }
}

const label = (cells, i) => (cells.online[i] ? cells.nodes[i] : `○ ${cells.nodes[i]}`);

function runs(cells, list, from, to) {
  const out = [];
  for (let k = from; k < to; k++) {
    const name = cluster(cells.nodes[list[k]]);
    if (out.at(-1)?.name === name) out.at(-1).to = k + 1;
    else out.push({ name, from: k, to: k + 1 });
  }
  return out;
}

function crosshair(g, grid, x, y, ink, focused, { width, height }) {
  if (x < grid.left - grid.cell || y < grid.top - grid.cell) return;
  g.save();
  g.beginPath();
  g.rect(grid.left, grid.top, width, height);
  g.clip();
  g.strokeStyle = ink.link;
  g.globalAlpha = 0.35;
  g.lineWidth = 1;
  g.strokeRect(grid.left, y - 0.5, width, grid.cell);
  g.strokeRect(x - 0.5, grid.top, grid.cell, height);
  g.globalAlpha = 1;
  g.lineWidth = focused ? 2 : 1;
  g.strokeRect(x - 1, y - 1, grid.cell + 1, grid.cell + 1);
  g.restore();
}
