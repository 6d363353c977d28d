/**
 * Draws a video whose lower half is the alpha of its upper half, as a transparent session has it (participant attribute
 * `avatar.alpha` = `below`), onto a canvas that lets the page behind it through. By WebGL; without it the picture is drawn on black.
 *
 * @module alpha-canvas
 */

const VERTEX = `
attribute vec2 corner;
varying vec2 at;
void main() {
  at = vec2(corner.x + 1.0, 1.0 - corner.y) / 2.0;
  gl_Position = vec4(corner, 0.0, 1.0);
}`;
/** Colours come times their alpha. Half a pixel at the seam is left out, or the one half would shine into the other. */
const FRAGMENT = `
precision mediump float;
varying vec2 at;
uniform sampler2D frame;
uniform float seam;
void main() {
  float y = clamp(at.y / 2.0, seam, 0.5 - seam);
  float alpha = texture2D(frame, vec2(at.x, y + 0.5)).r;
  vec3 colour = texture2D(frame, vec2(at.x, y)).rgb;
  gl_FragColor = alpha < 0.02 ? vec4(0.0) : vec4(min(colour, vec3(alpha)), alpha);
}`;

/** Draws from `start` to `stop`. */
export class AlphaCanvas {
  #video;
  #canvas;
  #running = false;
  #over = new AbortController();
  /** @type {WebGLRenderingContext | null} */
  #gl = null;
  /** @type {WebGLUniformLocation | null} */
  #seam = null;
  /** @type {CanvasRenderingContext2D | null} */
  #plain = null;

  /** @param {HTMLVideoElement} video plays on, unseen @param {HTMLCanvasElement} canvas gets the picture's size */
  constructor(video, canvas) {
    this.#video = video;
    this.#canvas = canvas;
    const { signal } = this.#over;
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault(), { signal });
    canvas.addEventListener("webglcontextrestored", () => this.#prepare(), { signal });
    this.#gl = canvas.getContext("webgl", { alpha: true, premultipliedAlpha: true, antialias: false, depth: false });
    if (this.#gl) this.#prepare();
    else this.#plain = canvas.getContext("2d");
  }

  /** Whether the page behind is let through: false where the browser has no WebGL. */
  get transparent() {
    return this.#gl !== null;
  }

  /** Begins to draw. Idempotent. */
  start() {
    if (this.#running) return;
    this.#running = true;
    this.#next();
  }

  /** Ends it for good, and clears the canvas. Idempotent. */
  stop() {
    this.#running = false;
    this.#over.abort();
    this.#canvas.width = this.#canvas.height = 1;
  }

  #next() {
    const draw = () => {
      if (!this.#running) return;
      this.#draw();
      this.#next();
    };
    if ("requestVideoFrameCallback" in this.#video) this.#video.requestVideoFrameCallback(draw);
    else requestAnimationFrame(draw);
  }

  #draw() {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (width < 4 || height < 4) return; // the last frame of a track that ends has 2×2 pixels
    const canvas = this.#canvas;
    if (canvas.width !== width || canvas.height !== height >> 1) [canvas.width, canvas.height] = [width, height >> 1];
    const gl = this.#gl;
    if (!gl) {
      this.#plain?.drawImage(this.#video, 0, 0, width, height / 2, 0, 0, width, height / 2);
      return;
    }
    if (gl.isContextLost()) return;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, this.#video);
    gl.uniform1f(this.#seam, 0.5 / height);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  #prepare() {
    const gl = /** @type {WebGLRenderingContext} */ (this.#gl);
    const program = gl.createProgram();
    for (const [type, source] of /** @type {const} */ ([
      [gl.VERTEX_SHADER, VERTEX],
      [gl.FRAGMENT_SHADER, FRAGMENT],
    ])) {
      const shader = /** @type {WebGLShader} */ (gl.createShader(type));
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    const corner = gl.getAttribLocation(program, "corner");
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    this.#seam = gl.getUniformLocation(program, "seam");
  }
}
