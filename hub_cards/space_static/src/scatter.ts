// The map of cells: points by WebGL, and a lasso over them.

import { randomNumbers, shuffled } from "./evidence";

const MARGIN = 0.06;
// While the map moves, as many points are drawn as a frame of that time allows: a random part where nothing but the processor draws.
const FRAME_MS = 33, FEWEST_POINTS = 4_000, STILL_MS = 160, MOST_STILL_MS = 800;
const VERTEX = `#version 300 es
in vec2 place; in vec3 colour; in float weight;
uniform vec2 centre; uniform vec2 scale; uniform float size;
out vec4 shown;
void main() {
  gl_Position = vec4((place - centre) * scale, 0.0, 1.0);
  gl_PointSize = size * (weight > 1.5 ? 1.7 : 1.0);
  shown = vec4(colour, weight < 0.5 ? 0.14 : 0.9);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec4 shown; out vec4 pixel;
void main() {
  float far = length(gl_PointCoord - 0.5);
  if (far > 0.5) discard;
  pixel = vec4(shown.rgb, shown.a * smoothstep(0.5, 0.4, far));
}`;

/** How a cell stands out: 0 dimmed, 1 plain, 2 larger. */
export type Weights = Float32Array;

export class Scatter {
  private gl: WebGL2RenderingContext | null;
  private program: WebGLProgram | null = null;
  private places: Float32Array = new Float32Array(0);
  private centre: [number, number] = [0, 0];
  private zoom = 1;
  private fitted = 1;
  private path: [number, number][] = [];
  private isMoving = false;
  private isDirty = false;
  private order: Int32Array = new Int32Array(0);
  private most = Infinity;
  private isInMotion = false;
  private timer = 0;
  tool: "lasso" | "move" = "lasso";

  constructor(private canvas: HTMLCanvasElement, private overlay: HTMLCanvasElement, private onSelect: (cells: Int32Array) => void) {
    this.gl = canvas.getContext("webgl2", { antialias: false, depth: false });
    if (this.gl) this.program = programOf(this.gl);
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  get isPossible(): boolean {
    return this.gl !== null;
  }

  setPlaces(places: Float32Array): void {
    this.places = places;
    this.order = shuffled(places.length / 2, randomNumbers(0));
    this.fill("place", places, 2);
    this.fit();
  }

  setColours(colours: Float32Array, weights: Weights): void {
    this.fill("colour", colours, 3);
    this.fill("weight", weights, 1);
    this.draw();
  }

  fit(): void {
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let at = 0; at < this.places.length; at += 2) {
      const x = this.places[at], y = this.places[at + 1];
      if (!Number.isFinite(x) || !Number.isFinite(y)) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      bottom = Math.min(bottom, y);
      top = Math.max(top, y);
    }
    this.centre = [(left + right) / 2, (bottom + top) / 2];
    this.fitted = (2 - 2 * MARGIN) / Math.max(right - left, top - bottom, 1e-9);
    this.zoom = 1;
    this.draw();
  }

  zoomBy(factor: number): void {
    this.zoom = Math.min(Math.max(this.zoom * factor, 0.5), 200);
    this.move();
  }

  moveBy(x: number, y: number): void {
    const [scaleX, scaleY] = this.scale();
    this.centre = [this.centre[0] + x / scaleX, this.centre[1] + y / scaleY];
    this.move();
  }

  /** Draw quickly, and all of it when the map has come to rest. */
  private move(): void {
    this.isInMotion = true;
    this.draw();
  }

  /** How long a frame took says how many points the next may have; rest begins a moment after the last one was shown. */
  private learn(numShown: number, took: number): void {
    this.most = Math.max(FEWEST_POINTS, Math.round(numShown * Math.min(FRAME_MS / took, 1.25)));
    if (!this.isInMotion) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.isInMotion = false;
      this.draw();
    }, Math.min(Math.max(STILL_MS, 3 * took), MOST_STILL_MS));
  }

  /** Draw with the next frame, however often it is asked for. */
  draw(): void {
    if (this.isDirty) return;
    this.isDirty = true;
    requestAnimationFrame((time) => {
      this.isDirty = false;
      const numCells = this.places.length / 2, numShown = this.isInMotion ? Math.min(this.most, numCells) : numCells;
      this.drawNow(numShown);
      requestAnimationFrame((next) => this.learn(numShown, next - time));
    });
  }

  private scale(): [number, number] {
    const { clientWidth: width, clientHeight: height } = this.canvas, all = this.fitted * this.zoom;
    return width > height ? [(all * height) / width, all] : [all, (all * width) / height];
  }

  private drawNow(numShown: number): void {
    const { gl, program, canvas } = this, ratio = window.devicePixelRatio || 1;
    if (!gl || !program) return;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height]; // costs a new buffer
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(program);
    const numCells = this.places.length / 2, size = numCells > 20_000 ? 2.2 : numCells > 3_000 ? 3.4 : numCells > 600 ? 5.5 : 7;
    gl.uniform2fv(this.uniform("centre"), this.centre);
    gl.uniform2fv(this.uniform("scale"), this.scale());
    gl.uniform1f(this.uniform("size"), size * ratio * Math.min(Math.sqrt(this.zoom), 3));
    gl.drawArrays(gl.POINTS, 0, numShown);
    canvas.dataset.shown = String(numShown);
  }

  private fill(name: string, values: Float32Array, width: number): void {
    const { gl, program } = this;
    if (!gl || !program) return;
    const place = gl.getAttribLocation(program, name);
    if (place < 0) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffer(name));
    const mixed = new Float32Array(values.length);
    this.order.forEach((cell, place) => {
      for (let at = 0; at < width; at++) mixed[place * width + at] = values[cell * width + at];
    });
    gl.bufferData(gl.ARRAY_BUFFER, mixed, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, width, gl.FLOAT, false, 0, 0);
  }

  private uniforms = new Map<string, WebGLUniformLocation | null>();

  private uniform(name: string): WebGLUniformLocation | null {
    if (!this.uniforms.has(name)) this.uniforms.set(name, this.gl!.getUniformLocation(this.program!, name));
    return this.uniforms.get(name)!;
  }

  private buffers = new Map<string, WebGLBuffer>();

  private buffer(name: string): WebGLBuffer {
    if (!this.buffers.has(name)) this.buffers.set(name, this.gl!.createBuffer());
    return this.buffers.get(name)!;
  }

  // ---- pointer and keys

  private begin(event: PointerEvent): void {
    this.canvas.setPointerCapture(event.pointerId);
    this.isMoving = this.tool === "move" || event.button === 1;
    this.path = [[event.offsetX, event.offsetY]];
  }

  private drag(event: PointerEvent): void {
    if (!this.path.length) return;
    if (this.isMoving) {
      const [x, y] = this.path[0], { clientWidth, clientHeight } = this.canvas;
      this.moveBy((-2 * (event.offsetX - x)) / clientWidth, (2 * (event.offsetY - y)) / clientHeight);
      this.path = [[event.offsetX, event.offsetY]];
      return;
    }
    this.path.push([event.offsetX, event.offsetY]);
    this.drawPath();
  }

  private end(): void {
    const path = this.path;
    this.path = [];
    this.drawPath();
    if (!this.isMoving && path.length > 2) this.onSelect(this.within(path));
    this.isMoving = false;
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2);
  }

  private key(event: KeyboardEvent): void {
    const steps: Record<string, () => void> = {
      ArrowLeft: () => this.moveBy(-0.1, 0), ArrowRight: () => this.moveBy(0.1, 0), ArrowUp: () => this.moveBy(0, 0.1),
      ArrowDown: () => this.moveBy(0, -0.1), "+": () => this.zoomBy(1.2), "-": () => this.zoomBy(1 / 1.2), Home: () => this.fit(),
    };
    if (!steps[event.key]) return;
    event.preventDefault();
    steps[event.key]();
  }

  private drawPath(): void {
    const { overlay } = this, pen = overlay.getContext("2d")!;
    overlay.width = overlay.clientWidth;
    overlay.height = overlay.clientHeight;
    if (this.path.length < 2) return;
    pen.strokeStyle = getComputedStyle(overlay).color;
    pen.lineWidth = 2;
    pen.setLineDash([5, 4]);
    pen.beginPath();
    this.path.forEach(([x, y], at) => (at ? pen.lineTo(x, y) : pen.moveTo(x, y)));
    pen.closePath();
    pen.stroke();
  }

  /** The cells within a path of pixels. */
  private within(path: [number, number][]): Int32Array {
    const [scaleX, scaleY] = this.scale(), { clientWidth, clientHeight } = this.canvas, cells: number[] = [];
    for (let cell = 0; 2 * cell < this.places.length; cell++) {
      const x = (((this.places[2 * cell] - this.centre[0]) * scaleX + 1) / 2) * clientWidth;
      const y = ((1 - (this.places[2 * cell + 1] - this.centre[1]) * scaleY) / 2) * clientHeight;
      if (isInside(x, y, path)) cells.push(cell);
    }
    return Int32Array.from(cells);
  }
}

function isInside(x: number, y: number, path: [number, number][]): boolean {
  let inside = false;
  for (let one = 0, other = path.length - 1; one < path.length; other = one++) {
    const [ax, ay] = path[one], [bx, by] = path[other];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

function programOf(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram();
  for (const [type, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]] as const) {
    const shader = gl.createShader(type)!;
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}
