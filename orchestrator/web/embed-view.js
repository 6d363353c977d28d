/**
 * What `<talking-avatar>` shows: its shadow tree, without any state of its own.
 *
 * @module embed-view
 */

const CSS = `
:host { display: inline-block; position: relative; inline-size: 320px; max-inline-size: 100%; vertical-align: top; font: 15px/1.4 system-ui, sans-serif;
  color: #fff; --ta-accent: #3b6cf6; --ta-panel: rgb(16 18 24 / 72%); --ta-radius: 16px; }
:host([hidden]) { display: none; }
[hidden] { display: none !important; }
* { box-sizing: border-box; }
.stage { position: relative; aspect-ratio: var(--ta-ratio, 1); overflow: hidden; border-radius: var(--ta-radius); background: #20242e; }
video, canvas, .poster { position: absolute; inset: 0; inline-size: 100%; block-size: 100%; object-fit: cover; }
.stage.transparent { background: none; }
.stage.transparent video { opacity: 0; }
.top, .bottom { position: absolute; inset-inline: 0; display: flex; gap: 8px; padding: 10px; align-items: center; justify-content: center; }
.top { inset-block-start: 0; justify-content: space-between; pointer-events: none; }
.top > * { pointer-events: auto; }
.bottom { inset-block-end: 0; flex-direction: column; pointer-events: none; }
.start:not([hidden]) ~ .bottom { inset-block-end: 68px; }
.status, .captions, .problem { margin: 0; padding: 4px 10px; border-radius: 10px; background: var(--ta-panel); max-inline-size: 100%; overflow-wrap: anywhere; }
.status:empty { visibility: hidden; }
.problem { text-align: center; }
.controls { display: flex; gap: 8px; pointer-events: auto; }
button { font: inherit; color: inherit; border: 0; border-radius: 999px; min-inline-size: 44px; min-block-size: 44px; padding: 0 12px; background: var(--ta-panel); cursor: pointer; }
button svg { inline-size: 20px; block-size: 20px; fill: currentColor; vertical-align: -4px; }
button:focus-visible, input:focus-visible { outline: 3px solid #fff; outline-offset: 2px; box-shadow: 0 0 0 5px #000; }
button[aria-pressed="true"] { background: var(--ta-accent); }
.start { position: absolute; inset: 0; display: flex; align-items: end; justify-content: center; padding: 16px; border-radius: inherit; background: none; }
.start span { padding: 14px 22px; border-radius: 999px; background: var(--ta-accent); font-weight: 600; }
.start:disabled { cursor: progress; }
.start:focus-visible { outline-offset: -3px; box-shadow: inset 0 0 0 6px #000; }
form { display: flex; gap: 8px; margin: 8px 0 0; }
input { flex: 1; min-inline-size: 0; font: inherit; padding: 10px 14px; border-radius: 999px; border: 1px solid #8a90a0; background: #fff; color: #111; }
form button { background: var(--ta-accent); }
.log { position: absolute; inline-size: 1px; block-size: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (prefers-reduced-motion: no-preference) { button { transition: filter 0.15s; } }
button:hover:enabled { filter: brightness(1.15); }
`;
const ICONS = {
  microphone: "M12 15a3.5 3.5 0 0 0 3.5-3.5v-5a3.5 3.5 0 1 0-7 0v5A3.5 3.5 0 0 0 12 15Zm6-3.5a6 6 0 0 1-12 0H4.300a7.700 7.700 0 0 0 6.900 7.600V22h1.600v-2.900a7.700 7.700 0 0 0 6.900-7.600Z",
  sound: "M4 9v6h4l5 4V5L8 9H4Zm11.500 3a3.500 3.500 0 0 0-1.500-2.900v5.800a3.500 3.500 0 0 0 1.500-2.900Z",
  silent: "M4 9v6h4l5 4V5L8 9H4Zm17 .8L19.200 8 17 10.200 14.800 8 13 9.800 15.200 12 13 14.200 14.800 16 17 13.800 19.200 16 21 14.200 18.800 12 21 9.800Z",
};
const LOGGED = 30;
const SHOWN_CHARACTERS = 140;

/** The style sheet, shared by all elements of a page. @type {CSSStyleSheet | undefined} */
let sheet;

/** @param {string} tag @param {Record<string, string>} attributes @param {Node[]} children */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** @param {string} path */
function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

/** Sets a text where it differs, so that a screen reader does not announce the same again. @param {Element} element @param {string} text */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The elements of one shadow tree. Each has a `part` for styling. */
export class EmbedView {
  /** @param {ShadowRoot} root */
  constructor(root) {
    if (!sheet) {
      sheet = new CSSStyleSheet();
      sheet.replaceSync(CSS);
    }
    root.adoptedStyleSheets = [sheet]; // a page's `style-src` does not have to allow it
    this.video = /** @type {HTMLVideoElement} */ (make("video", { part: "video", playsinline: "" }));
    this.canvas = /** @type {HTMLCanvasElement} */ (make("canvas", { part: "canvas", hidden: "", "aria-hidden": "true" }));
    this.poster = /** @type {HTMLImageElement} */ (make("img", { part: "poster", class: "poster", alt: "" }));
    this.startLabel = make("span", { part: "start" });
    /** The whole stage. @type {HTMLButtonElement} */
    this.start = /** @type {HTMLButtonElement} */ (make("button", { class: "start", type: "button" }, this.startLabel));
    this.status = make("p", { part: "status", class: "status", "aria-live": "polite" });
    this.stop = /** @type {HTMLButtonElement} */ (make("button", { part: "stop button", type: "button" }));
    this.captions = make("p", { part: "captions", class: "captions", "aria-hidden": "true" });
    this.problem = make("p", { part: "error", class: "problem", role: "alert" });
    this.talk = /** @type {HTMLButtonElement} */ (make("button", { part: "talk button", type: "button" }, icon(ICONS.microphone)));
    this.sound = /** @type {HTMLButtonElement} */ (make("button", { part: "mute button", type: "button" }));
    this.input = /** @type {HTMLInputElement} */ (make("input", { part: "input", type: "text", maxlength: "5000", autocomplete: "off", enterkeyhint: "send" }));
    this.send = /** @type {HTMLButtonElement} */ (make("button", { part: "send button", type: "submit" }));
    this.form = /** @type {HTMLFormElement} */ (make("form", { part: "form" }, this.input, this.send));
    this.log = make("div", { class: "log", role: "log" });
    this.controls = make("div", { part: "controls", class: "controls" }, this.talk, this.sound);
    this.stage = make(
      "div",
      { part: "stage", class: "stage" },
      this.video,
      this.canvas,
      this.poster,
      make("div", { class: "top" }, this.status, this.stop),
      this.start,
      make("div", { class: "bottom" }, this.problem, this.captions, this.controls),
    );
    root.append(this.stage, this.form, this.log);
    this.showProblem("");
    this.showCaption("");
  }

  /** Writes everything that does not change while it runs. @param {Record<import("./embed-texts.js").TextKey, string>} texts */
  label(texts) {
    setText(this.stop, texts.stop);
    setText(this.send, texts.send);
    this.video.setAttribute("aria-label", texts.video);
    this.log.setAttribute("aria-label", texts.log);
    this.input.setAttribute("aria-label", texts.text);
    this.input.placeholder = texts.text;
  }

  /**
   * @param {{running: boolean, starting: boolean, hears: boolean, talks: boolean, writes: boolean, muted: boolean, microphone: boolean, status: string}} now
   *     `hears`: the avatar listens; `talks`, `writes`: the page wants the microphone's button, the text field
   * @param {Record<import("./embed-texts.js").TextKey, string>} texts
   */
  show({ running, starting, hears, talks, writes, muted, microphone, status }, texts) {
    this.start.hidden = running;
    this.start.disabled = starting;
    setText(this.startLabel, starting ? texts.starting : texts.start);
    this.stop.hidden = !running && !starting;
    this.controls.hidden = !running;
    this.talk.hidden = !(talks && hears);
    this.form.hidden = !(running && writes && hears);
    this.talk.setAttribute("aria-pressed", String(microphone));
    this.talk.setAttribute("aria-label", microphone ? texts.quiet : texts.talk);
    this.sound.setAttribute("aria-label", muted ? texts.unmute : texts.mute);
    if (this.sound.dataset.muted !== String(muted)) this.sound.replaceChildren(icon(muted ? ICONS.silent : ICONS.sound));
    this.sound.dataset.muted = String(muted);
    setText(this.status, status);
  }

  /** Shows the canvas, which lets the page through, in the video's place. @param {boolean} transparent */
  showTransparent(transparent) {
    this.canvas.hidden = !transparent;
    this.stage.classList.toggle("transparent", transparent);
  }

  /** @param {string} address "" for none */
  showPoster(address) {
    if (address) this.poster.src = address;
    else this.poster.removeAttribute("src");
    this.poster.hidden = !address;
  }

  /** The last words of a text over the video; "" for none. @param {string} text */
  showCaption(text) {
    const words = text.length > SHOWN_CHARACTERS ? `… ${text.slice(text.indexOf(" ", text.length - SHOWN_CHARACTERS) + 1)}` : text;
    setText(this.captions, words);
    /** @type {HTMLElement} */ (this.captions).hidden = !words;
  }

  /** @param {string} text "" for none */
  showProblem(text) {
    setText(this.problem, text);
    /** @type {HTMLElement} */ (this.problem).hidden = !text;
  }

  /** A whole line of the conversation, for screen readers. @param {string} who @param {string} text */
  note(who, text) {
    this.log.append(make("p", {}, document.createTextNode(`${who}: ${text}`)));
    while (this.log.childElementCount > LOGGED) this.log.firstElementChild?.remove();
  }

  /** Forgets what was said. */
  clear() {
    this.log.replaceChildren();
    this.showCaption("");
    this.showProblem("");
  }
}
