// A map of cells on a canvas. Click takes one cell, dragging draws around several; keyboard users have the search.
const UNKNOWN = "#8b9198";
const canvas = () => element.querySelector("canvas");
let places = [];
let path = null;

function colour(index, name) {
  if (name === "unknown" || name === "not named yet") return UNKNOWN;
  // Of a lightness that reads on white and on black alike.
  return `oklch(${[0.62, 0.54, 0.7][index % 3]} ${index % 2 ? 0.12 : 0.17} ${(index * 137.5 + 235) % 360})`;
}

function draw() {
  const points = props.value;
  const area = canvas();
  if (!area) return;
  const ratio = window.devicePixelRatio || 1;
  const width = area.clientWidth, height = area.clientHeight;
  area.width = width * ratio;
  area.height = height * ratio;
  const pen = area.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, width, height);
  if (!points || !points.x) return;
  const margin = 14;
  const [right, top] = [Math.max(...points.x, 1e-9), Math.max(...points.y, 1e-9)];
  const scale = Math.min((width - 2 * margin) / right, (height - 2 * margin) / top);
  const left = (width - right * scale) / 2, bottom = (height + top * scale) / 2;
  places = points.x.map((x, i) => [left + x * scale, bottom - points.y[i] * scale]);
  const radius = places.length > 5000 ? 1.6 : places.length > 1000 ? 2.4 : 3.4;
  const chosen = new Set(points.selected);
  const found = new Set(points.highlighted);
  const dim = chosen.size > 0 || found.size > 0;
  places.forEach(([x, y], i) => {
    pen.globalAlpha = !dim || chosen.has(i) || found.has(i) ? 0.95 : 0.25;
    pen.fillStyle = colour(points.label[i], points.names[points.label[i]]);
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fill();
  });
  pen.globalAlpha = 1;
  if (chosen.size <= 200) ring(pen, chosen, radius + 1.5, getComputedStyle(element).color); // more would hide the colours
  ring(pen, found, radius + 3, "#e8590c");
  if (path && path.length > 1) {
    pen.strokeStyle = getComputedStyle(element).color;
    pen.setLineDash([4, 3]);
    pen.beginPath();
    path.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.stroke();
  }
}

function ring(pen, cells, radius, style) {
  pen.strokeStyle = style;
  pen.lineWidth = 1.3;
  cells.forEach((i) => {
    if (!places[i]) return;
    pen.beginPath();
    pen.arc(places[i][0], places[i][1], radius, 0, 7);
    pen.stroke();
  });
}

function legend() {
  const box = element.querySelector(".legend");
  const points = props.value;
  if (!box) return;
  box.replaceChildren();
  ((points && points.names) || []).forEach((name, index) => {
    const entry = document.createElement("span");
    const dot = document.createElement("i");
    dot.style.background = colour(index, name);
    entry.append(dot, name);
    box.append(entry);
  });
}

function inside([x, y], shape) {
  let within = false;
  for (let i = 0, j = shape.length - 1; i < shape.length; j = i++) {
    const [xi, yi] = shape[i], [xj, yj] = shape[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
  }
  return within;
}

function nearest([x, y]) {
  let best = -1, least = 144;
  places.forEach(([a, b], i) => {
    const distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best < 0 ? [] : [best];
}

function position(event) {
  const box = canvas().getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

element.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas()) return;
  event.preventDefault();
  path = [position(event)];
});
window.addEventListener("pointermove", (event) => {
  if (!path) return;
  path.push(position(event));
  draw();
});
window.addEventListener("pointerup", () => {
  if (!path) return;
  const shape = path;
  path = null;
  const far = shape.some(([x, y]) => Math.hypot(x - shape[0][0], y - shape[0][1]) > 6);
  const cells = far ? places.map((_, i) => i).filter((i) => inside(places[i], shape)) : nearest(shape[0]);
  draw();
  trigger("select", { cells });
});
window.addEventListener("resize", draw);
watch("value", () => { legend(); draw(); });
legend();
draw();
