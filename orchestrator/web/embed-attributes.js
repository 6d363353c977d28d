/**
 * The attributes of `<talking-avatar>` as properties.
 *
 * @module embed-attributes
 */

export const ATTRIBUTES = ["src", "token", "token-url", "avatar", "poster", "talk", "text", "captions", "muted"];

/** On a server there are no elements; the module can be imported there all the same. */
const Base = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (/** @type {unknown} */ (class {}));

/** Each property is its attribute: a change of one is a change of the other. */
export class ReflectedAttributes extends Base {
  get src() {
    return this.getAttribute("src") ?? "";
  }

  set src(value) {
    this.#reflect("src", value);
  }

  get token() {
    return this.getAttribute("token") ?? "";
  }

  set token(value) {
    this.#reflect("token", value);
  }

  get tokenUrl() {
    return this.getAttribute("token-url") ?? "";
  }

  set tokenUrl(value) {
    this.#reflect("token-url", value);
  }

  get avatar() {
    return this.getAttribute("avatar") ?? "";
  }

  set avatar(value) {
    this.#reflect("avatar", value);
  }

  get poster() {
    return this.getAttribute("poster") ?? "";
  }

  set poster(value) {
    this.#reflect("poster", value);
  }

  get talk() {
    return this.hasAttribute("talk");
  }

  set talk(value) {
    this.toggleAttribute("talk", Boolean(value));
  }

  get text() {
    return this.hasAttribute("text");
  }

  set text(value) {
    this.toggleAttribute("text", Boolean(value));
  }

  /** Whether captions are shown. */
  get captions() {
    return this.getAttribute("captions") !== "off";
  }

  set captions(value) {
    this.#reflect("captions", value ? "" : "off");
  }

  get muted() {
    return this.hasAttribute("muted");
  }

  set muted(value) {
    this.toggleAttribute("muted", Boolean(value));
  }

  /** @param {string} name @param {string} value "" for none */
  #reflect(name, value) {
    if (value) this.setAttribute(name, value);
    else this.removeAttribute(name);
  }
}
